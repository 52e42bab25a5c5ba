"""What edgert/kernels/_codec.c does, in Python: the same bytes, a thousand times more slowly. Keep both in step."""

from __future__ import annotations

import copy
import zlib
from typing import Final, NamedTuple

_MODELS: Final = 4
_SEG: Final = 8
_PAD_X: Final = 8
_PAD_ABOVE: Final = 2
_PAD_BELOW: Final = 1
_GUESSES: Final = 5
_SURE: Final = 4
_LINE_BITS: Final = 5
_FRAMES_MAX: Final = 1 << 28
_SLACK: Final = 8
_SMALL: Final = 4096
_WEIGHT_MAX: Final = 1 << 20
_U32: Final = 0xFFFFFFFF
_W_PIXEL: Final = 12
_W_FIELD: Final = _W_PIXEL + 32 * (_MODELS + 1)
_W_SPELL: Final = _W_FIELD + 8

# round(65536 / (1 + exp(8 - j / 2))), at least 1
_KNOTS: Final = (
    22, 36, 60, 99, 162, 267, 440, 724, 1179, 1921, 3108, 4979, 7812, 11955, 17625, 24743, 32768, 40793, 47911, 53581,
    57724, 60557, 62428, 63615, 64357, 64812, 65096, 65269, 65374, 65437, 65476, 65500, 65514,
)  # fmt: skip
_SQUASH: Final = [
    (_KNOTS[x >> 7] * (128 - (x & 127)) + _KNOTS[(x >> 7) + 1] * (x & 127) + 64) >> 7 for x in range(4096)
]
_RATE: Final = [131072 // (2 * n + 3) for n in range(1024)]


def _stretch() -> list[int]:
    found, x = [], 0
    for p in range(4096):
        while x < 4095 and _SQUASH[x] < p * 16 + 8:
            x += 1
        found.append(x - 2048)
    return found


_STRETCH: Final = _stretch()


class Sizes(NamedTuple):
    """As `shape` in C."""

    height: int
    width: int
    channels: int
    planes: int
    boolean: int
    record: int
    history: int
    bits: int


class _DamagedError(Exception):
    """Never leaves this file. No room to write, or read too far: nothing that follows means anything."""


class _Counters:
    """Probabilities of a 1 in 1/65536, and how often each was adapted, up to a limit."""

    def __init__(self, count: int, p: int) -> None:
        self.p = [p] * count
        self.n = [0] * count

    def adapt(self, i: int, bit: int, limit: int) -> None:
        p, n = self.p[i], self.n[i]
        self.p[i] = p + (((bit << 16) - bit - p) * _RATE[n] >> 16)
        if n < limit:
            self.n[i] = n + 1


class _Code:
    """The arithmetic code; `data` is what is read, or None where it is written."""

    def __init__(self, data: bytes | None, room: int) -> None:
        self.lo, self.hi, self.x, self.at = 0, _U32, 0, 0
        self.data, self.room, self.out = data, room, bytearray()
        if data is not None:
            self.x, self.at = int.from_bytes(data[:4].ljust(4, b"\0"), "big"), 4

    def bit(self, bit: int, p: int) -> int:
        mid = self.lo + ((self.hi - self.lo) * p >> 16)
        data = self.data
        if data is not None:
            bit = int(self.x <= mid)
        if bit:
            self.hi = mid
        else:
            self.lo = mid + 1
        while not (self.lo ^ self.hi) >> 24:
            if data is not None:
                if self.at >= len(data) + _SLACK:
                    raise _DamagedError
                self.x = (self.x << 8 & _U32) | (data[self.at] if self.at < len(data) else 0)
                self.at += 1
            elif len(self.out) < self.room:
                self.out.append(self.hi >> 24)
            else:
                raise _DamagedError
            self.lo = self.lo << 8 & _U32
            self.hi = (self.hi << 8 & _U32) | 255
        return bit

    def finish(self) -> bytes:
        for count in range(5):
            rest = _U32 >> 8 * count
            value = (self.lo + rest) & ~rest
            if self.lo + rest <= _U32 and value <= self.hi:
                break
        if len(self.out) + count > self.room:
            raise _DamagedError
        self.out += value.to_bytes(4, "big")[:count]
        for _ in range(_SLACK // 2):
            if self.out and not self.out[-1]:
                del self.out[-1]
        return bytes(self.out)

    def alone(self, bit: int, counters: _Counters, i: int, limit: int) -> int:
        bit = self.bit(bit, min(max(counters.p[i], 32), 65504))
        counters.adapt(i, bit, limit)
        return bit

    def decide(self, bit: int, of: list[tuple[_Counters, int]], w: list[int], first: int, limit: int) -> int:
        stretched = [_STRETCH[counters.p[i] >> 4] for counters, i in of]
        dot = sum(w[first + i] * s for i, s in enumerate(stretched)) >> 16
        p = _SQUASH[min(max(dot, -2048), 2047) + 2048]
        bit = self.bit(bit, p)
        err = (bit << 16) - p
        for i, s in enumerate(stretched):
            w[first + i] = min(max(w[first + i] + (s * err + 8192 >> 14), -_WEIGHT_MAX), _WEIGHT_MAX)
            of[i][0].adapt(of[i][1], bit, limit)
        return bit


def _hash3(a: int, b: int, c: int) -> int:
    h = (a * 0x9E3779B1 + b * 0x85EBCA77 + c * 0xC2B2AE3D) & _U32
    h = (h ^ h >> 15) * 0x2C1B3C6D & _U32
    return h ^ h >> 13


class _Kept:
    """One frame of a history, with the maps of what changed in it."""

    def __init__(self, s: Sizes, stride: int, segs: int) -> None:
        self.pixels = bytearray(stride * (s.height + _PAD_ABOVE + _PAD_BELOW))
        self.map = bytearray((segs + 2) * (s.height + 2))
        self.rows = bytearray(s.height + 2)
        self.filled = bytearray(s.height + 4)


class Model:
    """All that both ends remember; `code` changes it."""

    def __init__(self, s: Sizes) -> None:
        self.s = s
        self.tracks = s.channels if s.planes else 1
        self.segs = -(-s.width // _SEG)
        self.stride = self.segs * _SEG + 2 * _PAD_X
        self.reset()

    def reset(self) -> None:
        s = self.s
        flags = 1 << min(s.bits, 12)
        self.seen = [0] * self.tracks
        self.ids = [-1] * s.channels
        self.prior = bytearray(s.record)
        self.frames = [[_Kept(s, self.stride, self.segs) for _ in range(s.history)] for _ in range(self.tracks)]
        self.flag = [_Counters(flags, 6000) for _ in range(3)]
        self.flag_mask = flags - 1
        self.slot = [[0] * (1 << s.bits) for _ in range(_MODELS)]
        self.trust = _Counters(_MODELS * 64, 0)
        self.trust.n = [4] * (_MODELS * 64)
        for i in range(_MODELS * 64):
            agrees, conf = i >> 5 & 1, i >> 1 & 15
            self.trust.p[i] = 26000 if conf == 0 else 16384 // (conf + 1) if agrees else 40000
        self.around = _Counters((1 << _MODELS) * 64, 16384)
        self.next = _Counters(_GUESSES * 64, 32768)
        self.spell = _Counters(16 * 256, 32768)
        self.near = [_Counters(0 if s.boolean else _SMALL, 32768) for _ in range(2)]
        self.refs = _Counters(64 + 256, 16384)
        self.field = [_Counters(_SMALL if s.record else 0, 32768) for _ in range(3)]
        self.weights = [28000] * _W_PIXEL + [16000] * (_W_FIELD - _W_PIXEL) + [28000] * (_W_SPELL + 4 - _W_FIELD)

    def snapshot(self) -> dict[str, object]:
        return copy.deepcopy(self.__dict__)

    def restore(self, kept: dict[str, object]) -> None:
        self.__dict__ = copy.deepcopy(kept)

    def encode(
        self, obs: bytes, n_obs: int, records: bytes, n_records: int, room: int, crc: int
    ) -> tuple[bytes | None, int]:
        code = _Code(None, room)
        try:
            crc = self._all(code, memoryview(bytearray(obs)), n_obs, memoryview(bytearray(records)), n_records, crc)
            return code.finish(), crc
        except _DamagedError:
            return None, crc

    def decode(self, data: bytes, n_obs: int, n_records: int, crc: int) -> tuple[bytes, bytes, int, int]:
        """The observations, the records, how many bytes were read (-1: damaged), and the checksum."""
        s, code = self.s, _Code(data, 0)
        obs, records = bytearray(n_obs * s.height * s.width * s.channels), bytearray(n_records * s.record)
        try:
            crc = self._all(code, memoryview(obs), n_obs, memoryview(records), n_records, crc)
            return bytes(obs), bytes(records), code.at, crc
        except _DamagedError:
            return b"", b"", -1, crc

    def _all(self, k: _Code, obs: memoryview, n_obs: int, records: memoryview, n_records: int, crc: int) -> int:
        if max(self.seen) > _FRAMES_MAX:
            raise _DamagedError
        s = self.s
        size = s.height * s.width * s.channels
        for i in range(max(n_obs, n_records)):
            if i < n_obs:
                crc = self._obs(k, obs[i * size : (i + 1) * size], self.prior[0] & 31 if s.record else 0, crc)
            if i < n_records:
                record = records[i * s.record : (i + 1) * s.record]
                self._record(k, record)
                crc = zlib.crc32(record, crc)
        return crc

    def _flag(self, k: _Code, bit: int, kind: int, a: int, b: int, group: int, c: int) -> int:
        mask = self.flag_mask
        of = [
            (self.flag[0], _hash3(a, kind, 1) & mask),
            (self.flag[1], (b + _hash3(group, kind, 2)) & mask),
            (self.flag[2], _hash3(c, kind, 3) & mask),
        ]
        return k.decide(bit, of, self.weights, 4 * kind, 250)

    def _pixel(
        self,
        k: _Code,
        at: int,
        cur: bytearray,
        p: list[bytearray],
        beside: bytearray,
        where: int,
        track: int,
        hint: int,
    ) -> None:
        one, two, three = p
        st, mask32 = self.stride, _U32
        p1, p2, p3 = one[at], two[at], three[at]
        n, nw, ne, nn = cur[at - st], cur[at - st - 1], cur[at - st + 1], cur[at - 2 * st]
        w, ww, www = cur[at - 1], cur[at - 2], cur[at - 3]
        pw, pn, pe, ps, pee = one[at - 1], one[at - st], one[at + 1], one[at + st], one[at + 2]
        pnw, pne, psw, pse = one[at - st - 1], one[at - st + 1], one[at + st - 1], one[at + st + 1]
        bs = beside[at]
        line = [
            _hash3(p1 | pe << 8 | ps << 16 | n << 24, nw | ne << 8 | pw << 16 | pn << 24, track << 2),
            _hash3(where >> 2, track, 1),
            _hash3(n | ne << 8 | nw << 16 | nn << 24, p1 | pe << 8 | pee << 16 | pse << 24, track << 2 | 2),
        ]
        if self.s.boolean:
            around = (p1, pw, pe, pn, ps, pnw, pne, psw, pse, p2, two[at - 1], two[at + 1], two[at - st], two[at + st])
            corners = (two[at - st - 1], two[at - st + 1], two[at + st - 1], two[at + st + 1])
            known = sum(bit << i for i, bit in enumerate(around + corners))
            line.append(_hash3(known, n | bs << 1 | nw << 2 | ne << 3, track << 2 | 3))
        else:
            known = p1 | p2 << 8 | p3 << 16 | pw << 24
            line.append(_hash3(known, n | pn << 8 | ne << 16 | bs << 24, track << 2 | 3))
        wch, nch, nech = int(w != pw), int(n != pn), int(ne != pne)
        rest = (
            w | ww << 8,
            (where & 3) << 26 | wch << 25 | nch << 24 | p1 << 16 | n << 8 | w,
            w | ww << 8 | www << 16,
            w,
        )
        shift = 32 - (self.s.bits - _LINE_BITS)
        slot, tag, sym, conf, power = [], [], [], [], []
        for i in range(_MODELS):
            h = ((line[i] ^ rest[i] * 0x9E3779B1) & mask32) * 0x85EBCA77 & mask32
            slot.append((line[i] >> shift << _LINE_BITS) | h >> (32 - _LINE_BITS))
            tag.append(h >> 16 & 15)
            held = self.slot[i][slot[i]]
            c = held >> 8 & 15 if held >> 12 == tag[i] else 0
            conf.append(c)
            sym.append(held & 255 if c else p1)
            power.append(c + (2 if i in (0, 2) else 1) if c else 0)
        best, weight = p1, 0
        for i in range(_MODELS):
            votes = sum(power[j] for j in range(_MODELS) if sym[j] == sym[i])
            if votes > weight:
                best, weight = sym[i], votes
        same, mask, of = int(best == p1), 0, []
        for i in range(_MODELS):
            agrees = int(sym[i] == best)
            mask |= (agrees & int(conf[i] > 0)) << i
            of.append((self.trust, ((i * 2 + agrees) * 16 + conf[i]) * 2 + same))
        of.append((self.around, mask << 6 | same << 5 | wch << 4 | nch << 3 | nech << 2 | hint))
        chosen = same << 4 | hint << 2 | wch << 1 | nch
        v = cur[at]
        missed = k.decide(int(v != best), of, self.weights, _W_PIXEL + chosen * (_MODELS + 1), 250)
        if not missed:
            v = best
        elif self.s.boolean:
            v = best ^ 1
        else:
            v = self._guess(k, v, best, (p1, w, n, p2, ne, pe, sym[0], sym[2]), wch << 2 | nch << 1 | same, track)
        cur[at] = v
        for i in range(_MODELS):
            if not missed and not conf[i] and weight > _SURE:
                continue
            was = conf[i]
            right = was and sym[i] == v
            value = sym[i] if right or was > 2 else v
            c = min(was + 1, 15) if right else was >> 1 if was > 2 else 1
            self.slot[i][slot[i]] = tag[i] << 12 | c << 8 | value

    def _guess(self, k: _Code, v: int, best: int, guesses: tuple[int, ...], ctx: int, track: int) -> int:
        tried = [best]
        for j, guess in enumerate(guesses):
            if len(tried) > _GUESSES:
                break
            if guess in tried:
                continue
            if k.alone(int(v == guess), self.next, (len(tried) - 1) * 64 + j * 8 + ctx, 120):
                return guess
            tried.append(guess)
        p1, w, n = guesses[:3]
        node = 1
        for b in range(7, -1, -1):
            of = [
                (self.spell, (track & 15) * 256 + node),
                (self.near[0], _hash3(p1 << 8 | node, ctx & 1, 4) & (_SMALL - 1)),
                (self.near[1], _hash3(w << 16 | n << 8 | node, 0, 5) & (_SMALL - 1)),
            ]
            node = node << 1 | k.decide(v >> b & 1, of, self.weights, _W_SPELL, 120)
        return node & 255

    def _frame(self, k: _Code, track: int, act: int, crc: int) -> int:
        s, st, t = self.s, self.stride, track
        height, width, segs = s.height, s.width, self.segs
        ms = segs + 2
        id_ = self.seen[t]
        history = self.frames[t]
        now, one, two, three = (history[(id_ - back) % s.history] for back in range(4))
        cur, prior = now.pixels, one.pixels
        beside, beside_rows = three.pixels, None
        if s.planes and t:
            neighbour = self.frames[t - 1][id_ % s.history]
            beside, beside_rows = neighbour.pixels, neighbour.rows
        pixels = [one.pixels, two.pixels, three.pixels]
        encoding = k.data is None
        first = _PAD_ABOVE * st + _PAD_X
        starts = [first + y * st for y in range(height)]
        r1, r2, f1, f2 = one.rows, two.rows, one.filled, two.filled
        changed = int(encoding and any(cur[at : at + width] != prior[at : at + width] for at in starts))
        last = r1[0] << 1
        group = t << 8 | last | (beside_rows[0] if beside_rows else 0)
        changed = self._flag(k, changed, 0, t << 2 | last | r2[0], act, t, group)
        now.rows[:] = bytes(height + 2)
        now.rows[0] = changed
        now.map[:] = bytes(len(now.map))
        self.seen[t] += 1
        if not changed:
            if not encoding:
                cur[:] = prior
            now.filled[:] = f1
            return crc
        up = up2 = 0
        for y in range(height):
            at = starts[y]
            ch = int(encoding and cur[at : at + width] != prior[at : at + width])
            near = r1[y + 1] << 2 | r1[y + 2] << 1 | r2[y + 1]
            shape1 = shape2 = 0
            if s.planes:
                shape1 = f1[y + 1] << 2 | f1[y + 2] << 1 | f1[y + 3]
                shape2 = shape1 << 6 | f2[y] << 5 | f2[y + 1] << 4 | f2[y + 2] << 3 | f2[y + 3] << 2 | f2[y + 4] << 1
                shape2 |= beside_rows[y + 1] if beside_rows else 0
            a = up << 4 | up2 << 3 | near | t << 6 | shape2 << 16
            c = act << 6 | up << 3 | near | shape2 << 16 | t << 11
            ch = self._flag(k, ch, 1, a & _U32, y << 2 | up << 1 | r1[y + 1], t << 3 | shape1, c & _U32)
            up2, up = up, ch
            if not ch:
                if not encoding:
                    cur[at : at + segs * _SEG] = prior[at : at + segs * _SEG]
                continue
            now.rows[y + 1] = 1
            self._row(k, y, at, now.map, one.map, two.map, cur, pixels, beside, act, t, ms)
            crc = zlib.crc32(cur[at : at + width], zlib.crc32(y.to_bytes(2, "little"), crc))
        for y, at in enumerate(starts):
            now.filled[y + 2] = int(any(cur[at : at + width]))
        return crc

    def _row(
        self,
        k: _Code,
        y: int,
        start: int,
        map0: bytearray,
        map1: bytearray,
        map2: bytearray,
        cur: bytearray,
        pixels: list[bytearray],
        beside: bytearray,
        act: int,
        t: int,
        ms: int,
    ) -> None:
        prior, width = pixels[0], self.s.width
        some = 0
        for g in range(self.segs):
            at, end = start + g * _SEG, start + min((g + 1) * _SEG, width)
            i = ms * (y + 1) + 1 + g
            ch = int(k.data is None and cur[at : at + _SEG] != prior[at : at + _SEG])
            left, over, before = map0[i - 1], map0[i - ms], map1[i]
            cross = left << 7 | map0[i - ms - 1] << 6 | over << 5 | map0[i - ms + 1] << 4
            cross |= before << 3 | map1[i + 1] << 2 | map1[i - 1] << 1 | map2[i]
            below = map1[i + ms] << 2 | map1[i + ms - 1] << 1 | map1[i + ms + 1]
            b = (y * self.segs + g) << 2 | left << 1 | over
            c = (act << 3 | below) << 3 | before << 2 | over << 1 | left
            ch = self._flag(k, ch, 2, cross | some << 8 | t << 9, b, t, c)
            map0[i] = ch
            if not ch:
                if k.data is not None:
                    cur[at : at + _SEG] = prior[at : at + _SEG]
                continue
            some, different = 1, 0
            for x in range(at, end):
                hint = different << 1 | int(x + 1 == end)
                self._pixel(k, x, cur, pixels, beside, (y << 12) + x - start, t, hint)
                different |= int(cur[x] != prior[x])

    def _record(self, k: _Code, now: memoryview) -> None:
        prior, small = self.prior, _SMALL - 1
        left = hits = 0
        for b in range(self.s.record):
            above, v = prior[b], now[b]
            of = [
                (self.field[0], _hash3(b, hits & 3, 1) & small),
                (self.field[1], _hash3(b, above, 2) & small),
                (self.field[2], _hash3(b, left, 3) & small),
            ]
            other = k.decide(int(v != above), of, self.weights, _W_FIELD, 250)
            hits = hits << 1 | other
            got = above
            if other:
                before = 0 if b < 4 else prior[b - 4]
                node = 1
                for i in range(7, -1, -1):
                    of = [
                        (self.field[0], _hash3(b, node, 4) & small),
                        (self.field[1], _hash3(b, above << 8 | node, 5) & small),
                        (self.field[2], _hash3(b & 3, before << 16 | left << 8 | node, 6) & small),
                    ]
                    node = node << 1 | k.decide(v >> i & 1, of, self.weights, _W_FIELD + 4, 250)
                got = node & 255
            now[b] = prior[b] = left = got

    def _obs(self, k: _Code, obs: memoryview, act: int, crc: int) -> int:
        s = self.s
        if k.data is None and s.boolean and any(v > 1 for v in obs):
            raise _DamagedError
        if s.planes:
            for c in range(s.channels):
                if k.data is None:
                    self._take(obs, c, c, self.seen[c])
                crc = self._frame(k, c, act, crc)
                if k.data is not None:
                    self._give(obs, c, c, self.seen[c] - 1)
            return crc
        missed = 0
        for c in range(s.channels):
            upcoming = self.seen[0]
            if missed and self.ids[c - 1] >= 0:
                expected = self.ids[c - 1] + 1
            else:
                expected = self.ids[c + 1] if c + 1 < s.channels else upcoming
            ref = self._reference(k, obs, c, expected, missed)
            id_ = -1 if ref == 0 else upcoming if ref == 1 else upcoming - 1 - (ref - 2)
            missed |= int(id_ != expected)
            crc = zlib.crc32(bytes([ref]), crc)
            if ref == 1:
                if k.data is None:
                    self._take(obs, c, 0, upcoming)
                crc = self._frame(k, 0, act, crc)
            self.ids[c] = id_
            if k.data is not None:
                if ref:
                    self._give(obs, c, 0, id_)
                else:
                    obs[c :: s.channels] = bytes(s.height * s.width)
        return crc

    def _reference(self, k: _Code, obs: memoryview, c: int, expected: int, missed: int) -> int:
        upcoming = self.seen[0]
        want = 0 if expected == -1 else upcoming - 1 - expected + 2 if self._is_kept(expected) else 1
        is_ = 1
        if k.data is None:
            if want != 1 and self._shows(obs, c, expected):
                is_ = want
            elif want != 1 or missed:
                id_ = upcoming - 1
                while is_ == 1 and self._is_kept(id_):
                    if self._shows(obs, c, id_):
                        is_ = upcoming - 1 - id_ + 2
                    id_ -= 1
                if is_ == 1 and self._shows(obs, c, -1):
                    is_ = 0
        if not k.alone(int(is_ != want), self.refs, min(c, 15) << 1 | missed, 250):
            return want
        node = 1
        for b in range(7, -1, -1):
            node = node << 1 | k.alone(is_ >> b & 1, self.refs, 64 + node, 60)
        is_ = node & 255
        if is_ > 1 and not self._is_kept(upcoming - 1 - (is_ - 2)):
            raise _DamagedError
        return is_

    def _is_kept(self, id_: int) -> bool:
        return 0 <= id_ < self.seen[0] < id_ + self.s.history

    def _plane(self, track: int, id_: int) -> bytearray:
        return self.frames[track][id_ % self.s.history].pixels

    def _take(self, obs: memoryview, channel: int, track: int, id_: int) -> None:
        s, to = self.s, self._plane(track, id_)
        plane = bytes(obs[channel :: s.channels])
        for y in range(s.height):
            at = (y + _PAD_ABOVE) * self.stride + _PAD_X
            to[at : at + s.width] = plane[y * s.width : (y + 1) * s.width]

    def _content(self, track: int, id_: int) -> bytes:
        s, plane = self.s, self._plane(track, id_)
        starts = ((y + _PAD_ABOVE) * self.stride + _PAD_X for y in range(s.height))
        return b"".join(plane[at : at + s.width] for at in starts)

    def _give(self, obs: memoryview, channel: int, track: int, id_: int) -> None:
        obs[channel :: self.s.channels] = self._content(track, id_)

    def _shows(self, obs: memoryview, channel: int, id_: int) -> bool:
        plane = bytes(obs[channel :: self.s.channels])
        return plane == self._content(0, id_) if id_ >= 0 else not any(plane)
