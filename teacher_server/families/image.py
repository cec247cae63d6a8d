"""What image teachers of transformers share: pixels in, of one size; knows no architecture."""

from __future__ import annotations

from teacher_server.families.inputs import ImageInputs, ImageSettings
from teacher_server.families.pretrained import PretrainedFamily

__all__ = ["ImageFamily"]


class ImageFamily(PretrainedFamily):
    """A teacher that reads `pixel_values`. An image has no padding: its own mask is all ones."""

    modality = "image"

    def build_inputs(self) -> ImageInputs:
        """Reads `image` and `pixel_values`."""
        config, image = self.model.config, self.image
        channels = int(config.num_channels)
        if image is None:
            size = getattr(config, "image_size", ImageSettings.size)
            size = size if isinstance(size, int) else int(size[0])
            image = ImageSettings(size, mean=(0.5,) * channels, std=(0.5,) * channels)
        return ImageInputs(image, channels, self.model.dtype)
