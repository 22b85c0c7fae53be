"""The contract of text guidance: which words describe an image, in how many bits, and what the decoder's text encoder reads.

    image, draft --Guide.encode--> Text --stream--> Guide.prompt --> text encoder

Guides: `fixed` sends nothing, `tags` codes tags, `captions` captions, `residual` what a preview lacks. No module here imports the
codecs above: the encoder passes them what they may look at as a `Draft`. Heavy libraries are imported when a guide is first asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from icmbench.codecs.base import Image
from icmbench.codecs.bitstream import Text

if TYPE_CHECKING:
    from torch import Tensor

    from icmbench.codecs.diffusion.backbone.stable_diffusion import DiffusionBackbone, Prompt
    from icmbench.codecs.diffusion.sampling.samplers import NoisePredictor, Sampler


class Draft(Protocol):
    """All that a decoder will have of an image except its words; the encoder passes it to the guide that chooses the words."""

    @property
    def hint(self) -> Tensor:
        """What the coded latent tells the decoder, (1, C, H, W) float32."""

    @property
    def preview(self) -> Image:
        """The hint decoded without sampling, uint8 RGB of the image's height and width."""

    @property
    def backbone(self) -> DiffusionBackbone:
        """The Stable Diffusion that decodes."""

    @property
    def sampler(self) -> Sampler:
        """The sampler that the stream names."""

    def pixels(self, image: Image) -> Tensor:
        """The image, uint8 (H, W, 3), padded as the encoder pads it: (1, 3, H', W') float32 in [0, 1]."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (1, 3, 8H, 8W) float32 in [0, 1] -> their VAE latent (1, 4, H, W) float32."""

    def predictor(self, context: Tensor) -> NoisePredictor:
        """The decoder's noise prediction under text features (1, 77, D), without guidance; gradients flow to the features."""

    def render(self, prompt: Prompt, seed: int) -> Tensor:
        """What the decoder makes with this prompt and seed: (1, 3, H', W') float32 in [0, 1]."""


class Guide(Protocol):
    """Chooses and codes the words that guide the decoder."""

    @property
    def facts(self) -> Any:
        """Everything that decides the words of all images, as JSON for fingerprints. Words by image id are in `image_facts`."""

    @property
    def checksum(self) -> int:
        """32 bits on which encoder and decoder must agree, such as the checksum of a vocabulary; 0 for none."""

    def image_facts(self, image_id: str) -> Any:
        """The words that a file holds for this image, as JSON; None if no file holds any for it. See `codecs.base.Codec.facts`."""

    def encode(self, image: Image, image_id: str | None, draft: Draft) -> Text | None:
        """The words of an image as text of a stream.

        Args:
            image: uint8 RGB, (H, W, 3).
            image_id: The image's id, for words that a file holds by image id.
            draft: What the decoder will have apart from the words.

        Returns:
            The coded words, or None, which costs no bits, if there are none.

        Raises:
            CodecError: no words are given for this image, or a model that writes them fails.
        """

    def prompt(self, text: Text | None) -> Prompt:
        """What the text encoder reads: words or token ids.

        Raises:
            BitstreamError: this guide did not code the text.
        """
