"""Small images, videos and models that these sessions share with the tests of taps."""

from tests.extract.tables.conftest import clip_folder, dinov2_folder, write_images, write_video

__all__ = ["clip_folder", "dinov2_folder", "write_images", "write_video"]
