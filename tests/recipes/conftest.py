"""Small images, videos and models that these tests share with those of several taps."""

from tests.extract.tables.conftest import clip_folder, dinov2_folder, write_images, write_video

__all__ = ["clip_folder", "dinov2_folder", "write_images", "write_video"]
