"""How observations and Q-values travel: lossless, self-checking, and never larger in memory than announced.

A codec is known by the number that `wire.KnowAsk.codec` and `wire.KnowAnswer.codec` carry; `CODECS` is the table of
them, so that a better one can come without a new version of the wire. Every message stands alone: teachers are replicas
that share no state, so no codec may lean on an earlier message; who has one reader only uses `stream`.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import zstandard

from edgert.errors import MessageError, UsageError
from edgert.kernels.codec import HISTORY_MAX, NATIVE, RECORD_MAX, Coder, Layout
from edgert.nets import F32, U8

ObsShape: TypeAlias = tuple[int, int, int]

CODEC_FRAMES_ZSTD: Final = 1
CODEC_MIXED: Final = 2
CODEC_BEST: Final = CODEC_MIXED if NATIVE else CODEC_FRAMES_ZSTD
"""What to ask with: every teacher can read both, but without the C half codec 2 is a thousand times slower."""

MAX_DECODED_BYTES: Final = 1 << 26
"""A message that announces more than this decoded is refused before anything is allocated."""

_OBS_HEADER = struct.Struct("<BHII")  # packed?, observations, distinct frames, CRC-32 of shape and decoded observations
_Q_HEADER = struct.Struct("<I")  # CRC-32 of the decoded values
_MIXED_HEADER = struct.Struct("<BI")  # flags, CRC-32
_BOOLEAN, _PLANES, _STORED = 1, 2, 4
_LOOKED_AT: Final = 8  # steps from which the kind of the channels is told
_LEVEL: Final = 3
_MAX_COUNT: Final = 0xFFFF
_MAX_WINDOW_BYTES: Final = 1 << 23  # what RFC 8878 asks every decoder to support; a peer may ask us to allocate no more
_ZSTD_SLACK_BYTES: Final = 64
"""What zstd adds to a megabyte that it cannot shrink: a frame header and 3 bytes a 128 KiB block."""


def digest(obs: bytes) -> bytes:
    """Name an observation by its content.

    Args:
        obs: the bytes of one (H, W, C) uint8 observation in C order.

    Returns:
        16 bytes; two observations of one shape share them only if they are equal.

    Raises:
        Nothing.
    Source:
        RFC 7693 (BLAKE2b); 128 bits: a collision among 2^40 observations has probability 2^-49.

    """
    return hashlib.blake2b(obs, digest_size=16).digest()


def encode_obs(obs: U8) -> bytes:
    """Code a batch of observations: each distinct frame once, an index of who shows which, zstd over both.

    A frame is one channel of one observation, and frames are taken channel by channel. A stack of images shows all but
    its newest frame again one step later, and a plane of booleans often stands still. The index has a 0 where a frame
    is shown for the first time and otherwise 1 + its rank among the distinct ones. Booleans are packed eight to a byte.

    Args:
        obs: (n, H, W, C) uint8, n <= 65535 and nothing else empty.

    Returns:
        An 11-byte header and a zstd frame.

    Raises:
        UsageError: wrong dtype or rank, or more observations than the header can count.
    Source:
        ours: 5.1/10.3/10.7/11.8 bytes each where zstd -3 alone takes 8.9/21.1/12.1/17.0 (64 observations of MinAtar
        breakout/space_invaders/asterix/seaquest, random play).

    """
    _check_obs(obs)
    n, height, width, channels = obs.shape
    frames = np.ascontiguousarray(obs.transpose(3, 0, 1, 2)).reshape(channels * n, height * width)
    rank: dict[bytes, int] = {}
    index = np.empty(len(frames), np.uint32)
    for i, frame in enumerate(frames):
        content = frame.tobytes()
        known = rank.get(content)
        if known is None:
            rank[content] = len(rank)
        index[i] = 0 if known is None else known + 1
    distinct = np.frombuffer(b"".join(rank), np.uint8).reshape(len(rank), height * width)
    packed = not distinct.size or int(distinct.max()) <= 1
    body = _split(index, _index_width(len(rank))) + (np.packbits(distinct, axis=1) if packed else distinct).tobytes()
    return _OBS_HEADER.pack(packed, n, len(rank), _obs_crc(np.ascontiguousarray(obs))) + _compress(body)


def decode_obs(data: bytes, count: int, obs_shape: ObsShape) -> U8:
    """Undo `encode_obs`.

    Args:
        data: as received.
        count: observations that the message announced.
        obs_shape: (H, W, C) that the message announced.

    Returns:
        (count, H, W, C) uint8, a new array.

    Raises:
        MessageError: damaged, not as announced, or announced as over MAX_DECODED_BYTES. What is allocated on the way is
            at most a few times the announced size, whatever `data` claims.
    Source:
        ours, as `encode_obs`; RFC 8878 (zstd).

    """
    _check_announced_obs(count, obs_shape)
    height, width, channels = obs_shape
    n_frames, area = count * channels, height * width
    if len(data) < _OBS_HEADER.size:
        raise MessageError(f"{len(data)} bytes of observations are shorter than their header of {_OBS_HEADER.size}")
    packed, n, n_distinct, crc = _OBS_HEADER.unpack_from(data)
    if packed > 1 or n != count or n_distinct > n_frames:
        raise MessageError(
            f"header of packing {packed}, {n} observations, {n_distinct} frames; announced: {count} of {obs_shape}"
        )
    index_width, frame_bytes = _index_width(n_distinct), (area + 7) // 8 if packed else area
    index_bytes = n_frames * index_width
    body = _decompress(data[_OBS_HEADER.size :], index_bytes + n_distinct * frame_bytes)
    distinct = np.frombuffer(body, np.uint8, offset=index_bytes).reshape(n_distinct, frame_bytes)
    if packed:
        distinct = np.unpackbits(distinct, axis=1, count=area)
    shown = _resolve(_join(body[:index_bytes], n_frames, index_width), n_distinct)
    obs = np.ascontiguousarray(distinct[shown].reshape(channels, count, height, width).transpose(1, 2, 3, 0))
    if _obs_crc(obs) != crc:
        raise MessageError("observations do not match their checksum: damaged on the way")
    return obs


def encode_q(q: F32) -> bytes:
    """Code Q-values exactly: the four bytes of each float in four planes, zstd over them.

    Args:
        q: (n, A) float32; every bit pattern survives.

    Returns:
        At most `q_bytes_bound(n, A)` bytes.

    Raises:
        UsageError: wrong dtype or rank.
    Source:
        ours: exponents and signs repeat, mantissas do not, so they are kept apart (byte-plane shuffle as in Blosc).

    """
    _check_q(q)
    raw = np.ascontiguousarray(q, "<f4").view(np.uint8).reshape(-1, 4)
    return _Q_HEADER.pack(zlib.crc32(raw.tobytes())) + _compress(np.ascontiguousarray(raw.T).tobytes())


def decode_q(data: bytes, count: int, n_actions: int) -> F32:
    """Undo `encode_q`.

    Args:
        data: as received.
        count: rows that the message announced.
        n_actions: columns.

    Returns:
        (count, n_actions) float32, a new array; not necessarily finite.

    Raises:
        MessageError: damaged, of another size, or announced as over MAX_DECODED_BYTES.
    Source:
        ours, as `encode_q`; RFC 8878 (zstd).

    """
    _check_announced_q(count, n_actions)
    if len(data) < _Q_HEADER.size:
        raise MessageError(f"{len(data)} bytes of Q-values are shorter than their header of {_Q_HEADER.size}")
    body = _decompress(data[_Q_HEADER.size :], 4 * count * n_actions)
    raw = np.ascontiguousarray(np.frombuffer(body, np.uint8).reshape(4, count * n_actions).T)
    if zlib.crc32(raw.tobytes()) != _Q_HEADER.unpack_from(data)[0]:
        raise MessageError("Q-values do not match their checksum: damaged on the way")
    return raw.view("<f4").astype(np.float32).reshape(count, n_actions)


def q_bytes_bound(count: int, n_actions: int) -> int:
    """Upper bound on what `encode_q` makes of so many values.

    Args:
        count: rows.
        n_actions: columns.

    Returns:
        Bytes.

    Raises:
        Nothing.
    Source:
        zstd.h, ZSTD_COMPRESSBOUND: size + size/256 + (128 KiB - size)/2048 if smaller; rounded up.

    """
    raw = 4 * count * n_actions
    return _Q_HEADER.size + raw + raw // 256 + _ZSTD_SLACK_BYTES


class Codec(NamedTuple):
    """The four functions of one codec, as documented at codec 1's."""

    encode_obs: Callable[[U8], bytes]
    decode_obs: Callable[[bytes, int, ObsShape], U8]
    encode_q: Callable[[F32], bytes]
    decode_q: Callable[[bytes, int, int], F32]


def encode_obs_mixed(obs: U8) -> bytes:
    """Code a batch of observations by prediction from the batch's earlier frames and an adaptive arithmetic code.

    Whether channels are a stack of frames, of which each is sent once, or planes with a history each, and whether they
    are booleans, is looked up in the content; whatever it is, any content survives.

    Args:
        obs: (n, H, W, C) uint8, n <= 65535 and nothing else empty; neighbours in time side by side, oldest first, where
            there is a choice.

    Returns:
        A byte of flags, a CRC-32 and the code; where that is no smaller, a raw copy: never over 5 bytes more than that.

    Raises:
        UsageError: wrong dtype or rank, or too many observations.
    Source:
        ours, on `kernels.codec`.

    """
    _check_obs(obs)
    obs = np.ascontiguousarray(obs)
    flags = _flags(obs)
    n, height, width, channels = obs.shape
    try:
        coder = Coder(_layout((height, width, channels), flags, n))
    except UsageError:  # larger than it was made for
        code = None
    else:
        code, check = coder.encode(obs, None, _seed(obs.shape, flags), obs.nbytes)
    if code is None:
        flags, code = _STORED, obs.tobytes()
        check = _seed(obs.shape, flags)
    return _MIXED_HEADER.pack(flags, zlib.crc32(code, check)) + code


def decode_obs_mixed(data: bytes, count: int, obs_shape: ObsShape) -> U8:
    """Undo `encode_obs_mixed`.

    Args:
        data: as received.
        count: observations that the message announced.
        obs_shape: (H, W, C) that the message announced.

    Returns:
        (count, H, W, C) uint8, a new array.

    Raises:
        MessageError: damaged, not as announced, or announced as over MAX_DECODED_BYTES.
    Source:
        ours, as `encode_obs_mixed`.

    """
    _check_announced_obs(count, obs_shape)
    flags, check, code = _mixed_header(data)
    seed = _seed((count, *obs_shape), flags)
    if flags == _STORED:
        obs, found = _stored(code, count * prod(obs_shape)).reshape(count, *obs_shape), seed
    else:
        try:
            coder = Coder(_layout(obs_shape, flags, count))
        except UsageError as error:
            raise MessageError(f"observations of {obs_shape} are never coded like this: {error}") from error
        obs, _, found = coder.decode(code, count, 0, seed)
    if zlib.crc32(code, found) != check:
        raise MessageError("observations do not match their checksum: damaged on the way")
    return obs


def encode_q_mixed(q: F32) -> bytes:
    """Code Q-values exactly, or logits, or any float32: byte by byte, each seen beside those above and before it.

    Args:
        q: (n, A) float32; every bit pattern survives.

    Returns:
        At most `q_bytes_bound(n, A)` bytes.

    Raises:
        UsageError: wrong dtype or rank.
    Source:
        ours, on `kernels.codec`.

    """
    _check_q(q)
    raw = np.ascontiguousarray(q, ">f4").view(np.uint8).reshape(len(q), 4 * q.shape[1])
    code, seed = None, _seed(q.shape, 0)
    if 0 < raw.shape[1] <= RECORD_MAX:
        code, check = Coder(_records(raw.shape[1])).encode(None, raw, seed, raw.nbytes)
    if code is None:
        content = raw.tobytes()
        return _MIXED_HEADER.pack(_STORED, zlib.crc32(content, seed)) + content
    return _MIXED_HEADER.pack(0, zlib.crc32(code, check)) + code


def decode_q_mixed(data: bytes, count: int, n_actions: int) -> F32:
    """Undo `encode_q_mixed`.

    Args:
        data: as received.
        count: rows that the message announced.
        n_actions: columns.

    Returns:
        (count, n_actions) float32, a new array; not necessarily finite.

    Raises:
        MessageError: damaged, of another size, or announced as over MAX_DECODED_BYTES.
    Source:
        ours, as `encode_q_mixed`.

    """
    _check_announced_q(count, n_actions)
    flags, check, code = _mixed_header(data)
    seed = _seed((count, n_actions), 0)
    if flags == _STORED:
        raw, found = _stored(code, 4 * count * n_actions), seed
    elif flags == 0 and 0 < 4 * n_actions <= RECORD_MAX:
        _, raw, found = Coder(_records(4 * n_actions)).decode(code, 0, count, seed)
    else:
        raise MessageError(f"Q-values of {n_actions} actions are never coded with flags {flags}")
    if zlib.crc32(code, found) != check:
        raise MessageError("Q-values do not match their checksum: damaged on the way")
    return raw.view(">f4").astype(np.float32).reshape(count, n_actions)


CODECS: Final[Mapping[int, Codec]] = MappingProxyType(
    {
        CODEC_FRAMES_ZSTD: Codec(encode_obs, decode_obs, encode_q, decode_q),
        CODEC_MIXED: Codec(encode_obs_mixed, decode_obs_mixed, encode_q_mixed, decode_q_mixed),
    }
)


def _check_obs(obs: U8) -> None:
    if obs.dtype != np.uint8 or obs.ndim != 4 or min(obs.shape[1:]) < 1 or len(obs) > _MAX_COUNT:
        raise UsageError(f"observations must be uint8 (n <= {_MAX_COUNT}, H, W, C), not {obs.dtype} {obs.shape}")


def _check_announced_obs(count: int, obs_shape: ObsShape) -> None:
    if not 0 <= count <= _MAX_COUNT or min(obs_shape) < 1 or count * prod(obs_shape) > MAX_DECODED_BYTES:
        raise MessageError(
            f"{count} observations of {obs_shape} are over the limit of {MAX_DECODED_BYTES} bytes: ask less at once"
        )


def _check_q(q: F32) -> None:
    if q.dtype != np.float32 or q.ndim != 2:
        raise UsageError(f"Q-values must be float32 (n, A), not {q.dtype} {q.shape}")


def _check_announced_q(count: int, n_actions: int) -> None:
    if min(count, n_actions) < 0 or 4 * count * n_actions > MAX_DECODED_BYTES:
        raise MessageError(f"{count} x {n_actions} Q-values are over the limit of {MAX_DECODED_BYTES} bytes")


def _flags(obs: U8) -> int:
    """Booleans? Planes, or frames of one history?"""
    n, channels = len(obs), obs.shape[3]
    boolean = _BOOLEAN if not obs.size or int(obs.max()) <= 1 else 0
    if channels == 1:
        return boolean
    some = obs[: _LOOKED_AT + 1]
    shifted = (some[1:, :, :, :-1] == some[:-1, :, :, 1:]).all(axis=(1, 2, 3))
    if len(shifted) and 2 * int(shifted.sum()) > len(shifted):
        return boolean
    if boolean:
        return boolean | _PLANES
    frames = {frame.tobytes() for one in some for frame in one.transpose(2, 0, 1)}
    return 0 if n < 2 or len(frames) < 0.8 * len(some) * channels else _PLANES


def _layout(obs_shape: ObsShape, flags: int, count: int) -> Layout:
    planes = bool(flags & _PLANES)
    kept = 4 if planes else min(max(2 * obs_shape[2], 8 if count < 8 else 16), HISTORY_MAX)
    return Layout(*obs_shape, planes=planes, boolean=bool(flags & _BOOLEAN), history=kept)


def _records(size: int) -> Layout:
    return Layout(0, 0, 0, planes=False, boolean=False, record=size, history=4)


def _seed(shape: tuple[int, ...], flags: int) -> int:
    return zlib.crc32(struct.pack(f"<B{len(shape)}I", flags, *shape))


def _mixed_header(data: bytes) -> tuple[int, int, bytes]:
    if len(data) < _MIXED_HEADER.size:
        raise MessageError(f"{len(data)} bytes are shorter than their header of {_MIXED_HEADER.size}")
    flags, check = _MIXED_HEADER.unpack_from(data)
    if flags not in (0, _BOOLEAN, _PLANES, _BOOLEAN | _PLANES, _STORED):
        raise MessageError(f"flags {flags} are unknown: from a newer version, or damaged on the way")
    return flags, check, data[_MIXED_HEADER.size :]


def _stored(content: bytes, size: int) -> U8:
    if len(content) != size:
        raise MessageError(f"{len(content)} bytes where {size} were announced")
    return np.frombuffer(bytearray(content), np.uint8)


def _obs_crc(obs: U8) -> int:
    return zlib.crc32(obs.tobytes(), zlib.crc32(struct.pack("<4I", *obs.shape)))


def _index_width(n_distinct: int) -> int:
    return max(1, (n_distinct.bit_length() + 7) // 8)


def _split(index: npt.NDArray[np.uint32], width: int) -> bytes:
    """The low bytes of all, then the next ones: a plane of high bytes compresses to almost nothing."""
    planes = index.astype("<u4").view(np.uint8).reshape(-1, 4).T
    return np.ascontiguousarray(planes[:width]).tobytes()


def _join(data: bytes, n: int, width: int) -> npt.NDArray[np.int64]:
    planes = np.zeros((n, 4), np.uint8)
    planes[:, :width] = np.frombuffer(data, np.uint8).reshape(width, n).T
    return planes.view("<u4").astype(np.int64).reshape(n)


def _resolve(index: npt.NDArray[np.int64], n_distinct: int) -> npt.NDArray[np.int64]:
    """From "0 = new, else 1 + rank" to ranks; each reference must point back."""
    new = index == 0
    known = np.cumsum(new)
    if len(index) and (int(known[-1]) != n_distinct or bool((index > known).any())):
        raise MessageError(
            f"index of {int(known[-1])} new frames where {n_distinct} were announced, or one that points ahead"
        )
    return np.where(new, known, index) - 1


def _compress(body: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=_LEVEL, write_content_size=False).compress(body)


def _decompress(data: bytes, size: int) -> bytes:
    """Exactly `size` bytes, or MessageError; a frame that states its own size is believed only if it is this one."""
    try:
        # python-zstandard ignores max_output_size where the frame states its size: that one must be checked first.
        stated = zstandard.get_frame_parameters(data).content_size
        if stated not in (size, zstandard.CONTENTSIZE_UNKNOWN):
            raise MessageError(f"zstd frame claims {stated} bytes where {size} were announced")
        body = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).decompress(
            data, max_output_size=size + 1, allow_extra_data=False
        )
    except (zstandard.ZstdError, ValueError) as error:
        raise MessageError(f"not one whole zstd frame: {error}") from error
    if len(body) != size:
        raise MessageError(f"zstd frame holds {len(body)} bytes where {size} were announced")
    return body
