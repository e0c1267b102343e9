"""The vis control's bilateral filter, and what follows it, on the training device.

T frames, H height, W width. The same steps as in vis.py and media/geometry.py, each rounded to whole colours as there;
colours differ by TOLERANCE at most (tests/controls/test_on_device.py). OpenCV's filter takes seconds a frame where its
window is wide. Nothing is left out here: each pixel is mixed with every other one of its window, in float32.
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from worldtune.controls.vis import StepsLeft, smaller

TOLERANCE = 3
"""Largest difference of a colour (0 to 255) from that of OpenCV and Pillow, where a sum is rounded the other way and
the bicubic filter, which overshoots, widens that; 0.2 at most in the mean."""
PIXELS_AT_ONCE = 2**23
"""Pixels of frames that are worked on together, about: memory is some 60 bytes for each."""
PLACES_AT_ONCE = 16
"""Places of the bilateral filter's window that one pass over the pixels takes: more make longer compiled code, fewer
read the sums more often."""
Accumulate = Callable[[Sequence[Tensor], Tensor, Tensor, Tensor, Tensor, list[Tensor]], list[Tensor]]


def finish(
    frames: Tensor, steps: StepsLeft, resized_hw: tuple[int, int], size_hw: tuple[int, int], *, compiled: bool
) -> Tensor:
    """Return frames as the hint: degraded, then fitted as media.geometry.fit does it.

    Args:
        frames: uint8 [3, T, h, w] on the device, as vis.split gives them; what lies right of and below
            `steps.width` and `steps.height` is left away.
        steps: what is left to do.
        resized_hw: height and width to which the clip's frames are resized.
        size_hw: height and width of the hint, to which they are then padded.
        compiled: whether the bilateral filter is compiled.

    Returns:
        uint8 [3, T, H, W].
    """
    num_frames = frames.shape[1]
    finished = torch.empty((3, num_frames, *size_hw), dtype=torch.uint8, device=frames.device)
    count = max(PIXELS_AT_ONCE // (steps.shrunk_height * steps.shrunk_width), 1)
    for first in range(0, num_frames, count):
        part = frames[:, first : first + count, : steps.height, : steps.width].transpose(0, 1).contiguous()
        degraded = degrade(part, steps, compiled=compiled)
        fitted = _pad(_bicubic(degraded, resized_hw), size_hw)
        finished[:, first : first + count] = fitted.transpose(0, 1)
    return finished


def degrade(frames: Tensor, steps: StepsLeft, *, compiled: bool) -> Tensor:
    """Return uint8 [T, 3, h, w] as uint8 [T, 3, steps.shrunk_height, steps.shrunk_width], degraded by all steps."""
    for _ in range(steps.iterations):
        frames = bilateral(frames, steps.diameter, steps.sigma_color, steps.sigma_space, compiled=compiled)
    if steps.gaussian_size > 1:
        frames = gaussian(frames, steps.gaussian_size, steps.gaussian_sigma)
    shrunk_hw = steps.shrunk_height, steps.shrunk_width
    for size_hw in ((steps.blurred_height, steps.blurred_width), shrunk_hw):
        frames = linear(frames, size_hw)
    small_wh = smaller((steps.shrunk_width, steps.shrunk_height), steps.downscale)
    return _bicubic(_bicubic(frames, (small_wh[1], small_wh[0])), shrunk_hw)


def bilateral(
    frames: Tensor, diameter: int, sigma_color: float, sigma_space: float, *, compiled: bool = False
) -> Tensor:
    """Return frames (uint8 [T, 3, H, W]) under the bilateral filter, as cv2.bilateralFilter defines it.

    Each pixel becomes the mean over a disk, weighted by exp(-d^2 / 2 sigma_color^2 - r^2 / 2 sigma_space^2): d is the
    sum of the differences of the three colours, r the distance in pixels. Frames are mirrored beyond their border.

    Args:
        frames: what is filtered.
        diameter: of the disk in pixels; an even one is raised by 1.
        sigma_color: of the differences, which are up to 765.
        sigma_space: of the distance in pixels.
        compiled: whether the pass over the pixels is compiled, which is some ten times as fast on a GPU.
    """
    num_frames, _, height, width = frames.shape
    device, radius = frames.device, max(diameter // 2, 1)
    rows, columns = (_mirrored(side, radius, device) for side in (height, width))
    planes = frames.transpose(0, 1).index_select(2, rows).index_select(3, columns)
    padded_height, padded_width = planes.shape[2:]
    colors = [plane.reshape(-1) for plane in planes]
    middle = torch.arange(num_frames, device=device)[:, None, None] * (padded_height * padded_width)
    middle = middle + torch.arange(radius, radius + height, device=device)[:, None] * padded_width
    middle = (middle + torch.arange(radius, radius + width, device=device)).reshape(-1)

    reach = torch.arange(-radius, radius + 1)
    squares = reach[:, None] ** 2 + reach**2
    disk = squares <= radius**2
    steps = (reach[:, None] * padded_width + reach)[disk]
    exponents = squares[disk].float() / (-2 * sigma_space**2)
    # Places that fill the last pass have weight 0.
    missing = -len(steps) % PLACES_AT_ONCE
    steps = F.pad(steps, (0, missing)).to(device)
    exponents = F.pad(exponents, (0, missing), value=-torch.inf).to(device)
    slope = torch.tensor(-1 / (2 * sigma_color**2), device=device)

    accumulate = _compiled_accumulate() if compiled else _accumulate
    sums = [torch.zeros(len(middle), device=device) for _ in range(4)]
    for places, weights in zip(steps.split(PLACES_AT_ONCE), exponents.split(PLACES_AT_ONCE), strict=True):
        sums = accumulate(colors, middle, places, weights, slope, sums)
    *weighted, total = sums
    return (
        _to_bytes(torch.stack([color / total for color in weighted]))
        .reshape(3, num_frames, height, width)
        .transpose(0, 1)
    )


def _accumulate(
    colors: Sequence[Tensor], middle: Tensor, places: Tensor, exponents: Tensor, slope: Tensor, sums: list[Tensor]
) -> list[Tensor]:
    """Return four sums for each pixel, of three weighted colours and of weights, with those of some places around it.

    Args:
        colors: three flat planes of padded frames, uint8 [N].
        middle: where the pixels lie in them, int64 [M].
        places: from a pixel to the places, int64 [PLACES_AT_ONCE].
        exponents: of the weight of their distance, float32 [PLACES_AT_ONCE].
        slope: of the exponent over the squared difference in colour.
        sums: what is added to, float32 [M] each.
    """
    # One by one: a sum over an axis of colours would be compiled as a reduction, which reads everything again.
    red_plane, green_plane, blue_plane = colors
    red_sum, green_sum, blue_sum, weight_sum = sums
    own_red, own_green, own_blue = (plane[middle].float() for plane in colors)
    for place in range(PLACES_AT_ONCE):
        index = middle + places[place]
        red, green, blue = red_plane[index].float(), green_plane[index].float(), blue_plane[index].float()
        difference = (red - own_red).abs() + (green - own_green).abs() + (blue - own_blue).abs()
        weight = torch.exp(difference * difference * slope + exponents[place])
        red_sum = red_sum + weight * red
        green_sum = green_sum + weight * green
        blue_sum = blue_sum + weight * blue
        weight_sum = weight_sum + weight
    return [red_sum, green_sum, blue_sum, weight_sum]


@cache
def _compiled_accumulate() -> Accumulate:
    # Places lie within the padded frames; testing each read for that would cost as much as the rest.
    return torch.compile(_accumulate, dynamic=True, options={"assert_indirect_indexing": False})


def gaussian(frames: Tensor, size: int, sigma: float) -> Tensor:
    """Return frames (uint8 [T, 3, H, W]) under a Gaussian kernel of `size` (odd) pixels; mirrored beyond the border."""
    device, radius = frames.device, size // 2
    kernel = _gaussian_kernel(size, sigma).to(device)
    rows, columns = (_mirrored(side, radius, device) for side in frames.shape[2:])
    padded = frames.index_select(2, rows).index_select(3, columns).float().flatten(0, 1)[:, None]
    blurred = F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])
    # Halves are rounded up there.
    return (blurred + 0.5).floor().to(torch.uint8).reshape(frames.shape)


def linear(frames: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Resize uint8 [T, 3, h, w] as cv2.resize does it linearly: in fixed point, the lowest bits cut off on the way."""
    if frames.shape[2:] == size_hw:
        return frames
    (above, below, above_weight, below_weight), (left, right, left_weight, right_weight) = (
        _neighbours(before, after, frames.device) for before, after in zip(frames.shape[2:], size_hw, strict=True)
    )
    whole = frames.int()
    across = (whole.index_select(3, left) * left_weight + whole.index_select(3, right) * right_weight) >> 4
    upper = (across.index_select(2, above) * above_weight[:, None]) >> 16
    lower = (across.index_select(2, below) * below_weight[:, None]) >> 16
    return ((upper + lower + 2) >> 2).to(torch.uint8)


def _neighbours(before: int, after: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the two pixels of a side that each pixel of the resized side lies between, and their weights (int32).

    Weights add up to 2048.
    """
    places = ((torch.arange(after, dtype=torch.float64) + 0.5) * (before / after) - 0.5).clamp(0, before - 1)
    first = places.floor()
    second_weight = ((places - first) * 2048).round().int().to(device)
    first = first.long().to(device)
    return first, (first + 1).clamp(max=before - 1), 2048 - second_weight, second_weight


def gray(frames: Tensor) -> Tensor:
    """Return uint8 [B, 3, T, H, W] with the mean of the three colours, rounded, in each of them, as registry.gray."""
    mean = (frames.sum(dim=1, keepdim=True, dtype=torch.int16) + 1) // 3
    return mean.to(torch.uint8).expand(frames.shape)


def _gaussian_kernel(size: int, sigma: float) -> Tensor:
    """Return the kernel in OpenCV's fixed point, multiples of 1/256, each rounded with what the one before left."""
    reach = torch.arange(-(size // 2), size // 2 + 1, dtype=torch.float64)
    exact = torch.exp(-(reach**2) / (2 * sigma**2))
    whole = (256 * exact / exact.sum()).tolist()
    left = 0.0
    for place in range(size // 2):
        wanted = whole[place] + left
        whole[place] = whole[-1 - place] = float(round(wanted))
        left = wanted - whole[place]
    whole[size // 2] = 256 - 2 * sum(whole[: size // 2])
    return torch.tensor(whole, dtype=torch.float32) / 256


def _mirrored(side: int, radius: int, device: torch.device) -> Tensor:
    """Return which of `side` pixels lies at each place from -radius to side + radius, mirrored at the outer pixels."""
    places = torch.arange(-radius, side + radius, device=device)
    if side == 1:
        return torch.zeros_like(places)
    places = places % (2 * side - 2)
    return torch.where(places < side, places, 2 * side - 2 - places)


def _bicubic(frames: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Resize uint8 [T, 3, h, w] as media.geometry.resize does: rows first, rounded and cut to whole colours."""
    for pass_hw in ((frames.shape[2], size_hw[1]), size_hw):
        if frames.shape[2:] != pass_hw:
            resized = F.interpolate(frames.float(), pass_hw, mode="bicubic", antialias=True, align_corners=False)
            frames = _to_bytes(resized)
    return frames


def _pad(frames: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Pad uint8 [T, 3, h, w] as media.geometry.fit does."""
    height, width = frames.shape[2:]
    top, left = (size_hw[0] - height) // 2, (size_hw[1] - width) // 2
    bottom, right = size_hw[0] - height - top, size_hw[1] - width - left
    too_small = max(left, right) >= width or max(top, bottom) >= height
    # Of PyTorch's paddings only constant ones take bytes.
    rows = torch.arange(-top, height + bottom, device=frames.device)
    columns = torch.arange(-left, width + right, device=frames.device)
    if too_small:
        rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    else:
        rows = height - 1 - (height - 1 - rows.abs()).abs()
        columns = width - 1 - (width - 1 - columns.abs()).abs()
    return frames.index_select(2, rows).index_select(3, columns)


def _to_bytes(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)
