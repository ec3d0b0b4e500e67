"""``f3rm nsd``: features of the Natural Scenes Dataset for brain encoders."""

from dataclasses import dataclass
from pathlib import Path

from f3rm.recipes.elsewhere import present_device
from f3rm.recipes.nsd import Geometry, NsdBackbone, extract_nsd, nsd_spec, result_name
from f3rm.scripts.command import Command, say


@dataclass
class Nsd(Command):
    """Extract features of NSD images: OUTPUT_DIR/dinov2_q_last/01/train.npy and synt.npy.

    The images are DATA_DIR/training_split/training_images/*.png and test_split/test_images/*.png,
    as the Algonauts challenge has them.
    """

    data_dir: Path
    """Folder of the subject, or of all subjects (subj01, subj02, ...)."""
    output_dir: Path
    """Folder of the results."""
    subj: tuple[str, ...] = ("01",)
    """Subjects: 01, or several: 01 02 03."""
    backbone: NsdBackbone = "dinov2_q"
    """Queries of DINOv2 ViT-B/14, its tokens, or projected tokens of CLIP ViT-L/14."""
    batch_size: int = 16
    """Images per network call."""
    device: str = "cuda"
    """cuda (the CPU where there is no GPU), cpu, cuda:0, ..."""
    enc_layer: int = -1
    """Block of DINOv2, from the end if negative; CLIP has only the last."""
    geometry: Geometry | None = None
    """pad: whole pixels, 962 tokens of 425 x 425; stretch: 224 x 224 pixels, 257 tokens.
    By default pad with DINOv2 and stretch with CLIP."""
    weights: str = ""
    """A local copy of the weights: PATH, or CLIP=PATH."""

    def run(self) -> None:
        """Extracts and prints the arrays.

        Raises:
            F3rmError: If it cannot be done; the message says what to do.
        """
        spec = nsd_spec(
            self.backbone,
            enc_layer=self.enc_layer,
            geometry=self.geometry,
            weights=self.weights.removeprefix("CLIP=").removeprefix("DINOV2="),
        )
        name = result_name(self.backbone, self.enc_layer)
        stores = extract_nsd(
            self.data_dir,
            self.output_dir,
            spec,
            name,
            subjects=[subject.zfill(2) for subject in self.subj],
            batch_size=self.batch_size,
            device=present_device(self.device),
        )
        for subject, splits in stores.items():
            for split, store in splits.items():
                shape = store.shape(int(store.indices[0]))
                path = self.output_dir / name / subject / f"{split}.npy"
                say(f"{len(store)} images of shape {shape} in {path}")
