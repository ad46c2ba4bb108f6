"""Everything that a call sends to a device goes in one packed buffer, by one copy (recipes 3, 4, 8 and 12 of Table 1).

Raw uint8 images, ids, masks, counts and sizes lie one after the other, each on a 16-byte boundary, in one uint8 buffer;
on the device they are views of its copy. For CUDA the buffer is pinned and the copy does not wait. Nothing here keeps
the buffer: it comes from torch's caching host allocator, which records an event behind each non_blocking copy from a
block and hands that block out again only when the event has passed.
"""

import torch

ALIGNMENT = 16  # bytes; torch asks a view for a multiple of its element's size, vector loads for 16


def resolve_device(device) -> torch.device:
    """torch.device with its index, where the device type has indices: "cuda" is the current one.

    Raises ValueError, naming the value, for what is no device or none of this machine's.
    """
    try:
        return torch.empty(0, device=device).device
    except Exception as error:  # torch raises many kinds, some with a trace of C++
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"device={device!r} cannot be used here: pass 'cpu', 'cuda', an index or a torch.device that this machine "
            f"has ({reason[:120]})."
        ) from error


def to_numpy(tensor: torch.Tensor, name: str):
    """The tensor's values as a numpy array. Raises ValueError on a device that holds none."""
    if tensor.is_meta:
        raise ValueError(
            f"{name} is on the device 'meta', which holds no values: return_tensors='np' cannot give them."
        )
    return tensor.cpu().numpy()


def pack(tensors: list[torch.Tensor], pin: bool = False) -> tuple[torch.Tensor, list[int]]:
    """Copies CPU tensors of any dtypes, in C order, into one new uint8[n]; also returns each one's first byte."""
    offsets, total = [], 0
    for tensor in tensors:
        offsets.append(total)
        total += -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
    buffer = torch.empty(total, dtype=torch.uint8, device="cpu", pin_memory=pin)
    for view, tensor in zip(unpack(buffer, offsets, tensors), tensors):
        view.copy_(tensor)
    return buffer, offsets


def unpack(buffer: torch.Tensor, offsets: list[int], like: list[torch.Tensor]) -> list[torch.Tensor]:
    """Views of a packed buffer, on whatever device it is, with the shapes and dtypes of `like`."""
    views = []
    for offset, tensor in zip(offsets, like):
        part = buffer[offset : offset + tensor.numel() * tensor.element_size()]
        views.append(part.view(tensor.dtype).view(tensor.shape))
    return views


def send(tensors: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """CPU tensors -> the same on `device`, all of them views of one buffer that one copy brought there.

    Does not wait for the copy: work queued on the device's current stream afterwards sees its result.
    """
    buffer, offsets = pack(tensors, pin=device.type == "cuda")
    if device.type == "cpu":
        return unpack(buffer, offsets, tensors)
    sent = torch.empty(buffer.shape, dtype=torch.uint8, device=device).copy_(buffer, non_blocking=True)
    return unpack(sent, offsets, tensors)
