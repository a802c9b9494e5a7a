"""Storage codecs for camera images: size, decode speed and error, on Push-T and on a real camera.

    python benchmarks/codecs.py --pusht <zarr> --video <mp4> [--frames 256] [--rounds 3] [--out FILE]

``--noise 2`` adds Gaussian noise of that many grey levels to the video: a sensor has it, a video codec takes it away.
``--only`` measures the codecs whose names contain one of the given words.

Each codec stores ``--chunk`` frames together, as one chunk of a store would: stills are encoded one by one and
concatenated, Zstandard takes the whole chunk, video begins with a key frame and is as long as the chunk. Figures, one
thread each, by processor time: bytes a frame; encode; decode of whole chunks, which is what filling the cache and
streaming do; decode of one frame at random, for which video must decode its chunk up to there; PSNR against the source.
The video was lossy before (AV1), which flatters the video codecs. Prints JSON.

The effect on a policy is a matter of training runs, which this script does not make:
``visuomotor train task=pusht_image data=<store of the re-encoded images>`` for each codec, several seeds.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numcodecs import Blosc, Zstd
from numpy.typing import NDArray

from visuomotor.data.store import DemoStore

Frames = NDArray[np.uint8]  # [n, H, W, 3] RGB


@dataclass(frozen=True)
class Codec:
    """Encodes a chunk of frames; ``decode(data, shape)`` gives all, ``one(data, shape, i)`` a single one."""

    encode: Callable[[Frames], Any]
    decode: Callable[[Any, tuple[int, ...]], Frames]
    one: Callable[[Any, tuple[int, ...], int], NDArray[np.uint8]]
    size: Callable[[Any], int] = len


def whole(codec: Any) -> Codec:
    def decode(data: bytes, shape: tuple[int, ...]) -> Frames:
        return np.frombuffer(codec.decode(data), np.uint8).reshape(shape)

    return Codec(lambda x: codec.encode(np.ascontiguousarray(x)), decode, lambda d, s, i: decode(d, s)[i])


def stills(encode: Callable[[Frames], bytes], decode: Callable[[bytes], Frames]) -> Codec:
    return Codec(
        lambda x: [encode(frame) for frame in x],
        lambda data, _: np.stack([decode(d) for d in data]),
        lambda data, _, i: decode(data[i]),
        lambda data: sum(map(len, data)),
    )


def jpeg(quality: int) -> Codec:
    def encode(frame: Frames) -> bytes:
        options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        return cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), options)[1].tobytes()

    def decode(data: bytes) -> Frames:
        return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)

    return stills(encode, decode)


def jpeg_xl(**options: Any) -> Codec:
    import imagecodecs

    return stills(
        lambda frame: imagecodecs.jpegxl_encode(np.ascontiguousarray(frame), numthreads=1, **options),
        lambda data: imagecodecs.jpegxl_decode(data, numthreads=1),
    )


def video(name: str, options: dict[str, str]) -> Codec:
    def encode(frames: Frames) -> bytes:
        file = io.BytesIO()
        with av.open(file, "w", format="mp4") as out:
            stream = out.add_stream(name, rate=30, options=options)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            stream.codec_context.gop_size = len(frames)
            stream.codec_context.thread_count = 1
            for frame in frames:
                out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            out.mux(stream.encode())
        return file.getvalue()

    def decode(data: bytes, shape: tuple[int, ...], stop: int | None = None) -> Frames:
        images = []
        with av.open(io.BytesIO(data)) as file:
            file.streams.video[0].codec_context.thread_count = 1
            for frame in file.decode(video=0):
                images.append(frame.to_ndarray(format="rgb24"))
                if len(images) == stop:
                    break
        return np.stack(images)

    return Codec(encode, decode, lambda d, s, i: decode(d, s, i + 1)[-1])


def codecs() -> dict[str, Codec]:
    return {
        "zstd 2 (the store)": whole(Zstd(2)),
        "zstd 1": whole(Zstd(1)),
        "zstd 3": whole(Zstd(3)),
        "zstd -1": whole(Zstd(-1)),
        "zstd 1 in Blosc": whole(Blosc("zstd", 1, Blosc.NOSHUFFLE)),
        "LZ4 in Blosc": whole(Blosc("lz4", 1, Blosc.NOSHUFFLE)),
        "JPEG 90": jpeg(90),
        "JPEG 95": jpeg(95),
        "JPEG XL lossless": jpeg_xl(lossless=True, effort=3),
        "JPEG XL distance 1": jpeg_xl(distance=1.0, effort=3),
        "H.264 crf 18": video("libx264", {"crf": "18", "preset": "fast"}),
        "AV1 crf 25": video("libsvtav1", {"crf": "25", "preset": "8", "svtav1-params": "lp=1"}),
    }


def psnr(a: Sequence[Frames], b: Sequence[Frames]) -> float | None:
    error = float(
        np.mean([np.mean((x.astype(np.float32) - y.astype(np.float32)) ** 2) for x, y in zip(a, b, strict=True)])
    )
    return None if error == 0 else round(10 * float(np.log10(255**2 / error)), 1)


def measure(frames: Frames, chunk: int, rounds: int, only: Sequence[str]) -> dict[str, Any]:
    chunks = [frames[i : i + chunk] for i in range(0, len(frames) - chunk + 1, chunk)]
    n, rng = sum(map(len, chunks)), np.random.default_rng(0)
    out: dict[str, Any] = {}
    times: dict[str, dict[str, list[float]]] = {}
    packed, known = {}, {k: v for k, v in codecs().items() if not only or any(word in k for word in only)}
    for name, codec in known.items():
        begin = time.process_time()
        packed[name] = [codec.encode(c) for c in chunks]
        seconds = time.process_time() - begin
        decoded = [codec.decode(d, c.shape) for d, c in zip(packed[name], chunks, strict=True)]
        size = sum(map(codec.size, packed[name])) / n
        out[name] = {
            "bytes_per_frame": round(size),
            "ratio": round(frames[0].nbytes / size, 1),
            "encode_frames_per_s": round(n / seconds),
            "psnr_db": psnr(chunks, decoded),
        }
        times[name] = {"all": [], "one": []}
    for _ in range(rounds):  # the codecs take turns
        for name, codec in known.items():
            begin = time.process_time()
            for d, c in zip(packed[name], chunks, strict=True):
                codec.decode(d, c.shape)
            times[name]["all"].append(n / (time.process_time() - begin))
            begin = time.process_time()
            for _ in range(16):
                k = int(rng.integers(len(chunks)))
                codec.one(packed[name][k], chunks[k].shape, int(rng.integers(chunk)))
            times[name]["one"].append((time.process_time() - begin) / 16)
    for name in known:
        out[name]["decode_frames_per_s"] = round(statistics.median(times[name]["all"]))
        out[name]["random_frame_ms"] = round(1000 * statistics.median(times[name]["one"]), 2)
    return {"shape": list(frames.shape[1:]), "frames": n, "chunk": chunk, "codecs": out}


def video_frames(path: Path, n: int) -> Frames:
    with av.open(str(path)) as file:
        return np.stack([f.to_ndarray(format="rgb24") for f, _ in zip(file.decode(video=0), range(n), strict=False)])


def table(result: dict[str, Any]) -> str:
    lines = [
        "| codec | kB a frame | ratio | encode /s | decode /s | one at random [ms] | PSNR [dB] |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in result["codecs"].items():
        quality = "exact" if r["psnr_db"] is None else r["psnr_db"]
        lines.append(
            f"| {name} | {r['bytes_per_frame'] / 1000:.1f} | {r['ratio']} | {r['encode_frames_per_s']} "
            f"| {r['decode_frames_per_s']} | {r['random_frame_ms']} | {quality} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Size, decode speed and error of storage codecs.")
    parser.add_argument("--pusht", type=Path, help="Push-T demonstrations (pusht_cchi_v7_replay.zarr)")
    parser.add_argument("--video", type=Path, help="an mp4 of a real camera")
    parser.add_argument("--frames", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation of noise added to the video")
    parser.add_argument("--only", nargs="*", default=[], help="words in the names of the codecs")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    result: dict[str, Any] = {"machine": platform.processor() or platform.machine()}
    if args.pusht is not None:
        with DemoStore.open(args.pusht) as store:
            frames = np.clip(store.read("img", 0, args.frames), 0, 255).astype(np.uint8)
        result["pusht"] = measure(frames, args.chunk, args.rounds, args.only)
    if args.video is not None:
        frames = video_frames(args.video, args.frames // 2)
        if args.noise:
            noise = np.random.default_rng(0).normal(0, args.noise, frames.shape).round().astype(np.int16)
            frames = np.clip(frames + noise, 0, 255).astype(np.uint8)
        result["camera"] = measure(frames, args.chunk // 4, args.rounds, args.only)
    text = json.dumps(result, indent=1)
    print(text)
    for name in ("pusht", "camera"):
        if name in result:
            print(f"\n{name}\n{table(result[name])}")
    if args.out is not None:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
