"""ditctl denoise against a server: latents on the way, Ctrl-C in the middle, going on from there, and what is refused."""

import json
import re
import signal
import struct
import subprocess
import unittest
from pathlib import Path

from programs import ProgramTest, Server

SIZE = ("--height", "64", "--width", "64")
LATENTS = 8  # A side.
USAGE, INTERRUPTED = 2, 130


def metadata(file: Path) -> dict[str, str]:
    content = file.read_bytes()
    return json.loads(content[8:8 + int.from_bytes(content[:8], "little")])["__metadata__"]


def write_mask(file: Path) -> None:
    """The upper half is made anew."""
    count = LATENTS * LATENTS
    entry = {"dtype": "F32", "shape": [1, 1, LATENTS, LATENTS], "data_offsets": [0, 4 * count]}
    header = json.dumps({"mask": entry}).encode()
    half = count // 2
    file.write_bytes(len(header).to_bytes(8, "little") + header + struct.pack(f"<{count}f", *[1.0] * half, *[0.0] * half))


class DenoiseTest(ProgramTest):
    def setUp(self):
        super().setUp()
        self.part = self.folder / "part.safetensors"
        self.server = self.enterContext(Server(self.folder, "--model", f"tiny={self.checkpoint},numerics=diffusers"))

    def denoise(self, *flags: str | Path) -> subprocess.CompletedProcess:
        return self.server.ditctl("denoise", *SIZE, *flags)

    def output(self, *flags: str | Path) -> bytes:
        file = self.folder / "output.safetensors"
        done = self.denoise(*flags, "--output", file)
        self.assertEqual(done.returncode, 0, done.stderr)
        return file.read_bytes()

    def interrupt(self, *flags: str | Path) -> tuple[int, int]:
        """Ends a loop by Ctrl-C in its middle, with latents in `part`: after how many steps they are, and of how many."""
        for steps in (100, 200, 400, 800):  # One that is too short ends before it is told to.
            self.part.unlink(missing_ok=True)
            command = self.server.command("denoise", *SIZE, "--steps", str(steps), "--latents-every", "1",
                                          "--save-latents", self.part, *flags)
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as loop:
                while not self.part.exists() and loop.poll() is None:
                    pass
                loop.send_signal(signal.SIGINT)
                _, errors = loop.communicate()
            self.assertIn(loop.returncode, (0, INTERRUPTED), errors)
            saved = re.search(r"^saved (\S+) after step (\d+) of (\d+)$", errors, re.M)
            if loop.returncode == INTERRUPTED and saved and int(saved[2]) < int(saved[3]):
                self.assertEqual(saved[1], str(self.part))
                return int(saved[2]), steps
        self.fail("every loop had ended before it was interrupted")

    def test_a_loop_that_is_interrupted_goes_on_to_the_bytes_of_one_that_is_not(self):
        image, mask = self.folder / "image.safetensors", self.folder / "mask.safetensors"
        image.write_bytes(self.output("--steps", "2", "--seed", "5"))
        write_mask(mask)
        of_image = ("--image", image, "--strength", "0.9")
        for flags in ((), of_image, (*of_image, "--mask", mask, "--seed", "7,8", "--dtype", "float16"),
                      ("--dtype", "float32", "--base-shift", "0.5", "--max-shift", "1.2")):
            with self.subTest(flags=flags):
                done, steps = self.interrupt(*flags)
                self.assertEqual(metadata(self.part)["steps_done"], str(done))
                whole = self.output(*flags, "--steps", str(steps))
                self.assertEqual(self.output(*flags, "--steps", str(steps), "--resume", self.part), whole)

    def test_a_preview_is_shown_on_the_way_and_at_the_end(self):
        picture = self.folder / "preview.png"
        done, steps = self.interrupt("--preview", picture)
        on_the_way = picture.read_bytes()
        self.output("--steps", str(steps), "--resume", self.part, "--preview", picture)
        for shown in (on_the_way, picture.read_bytes()):
            self.assertEqual(shown[:4], b"\x89PNG")
        self.assertNotEqual(on_the_way, picture.read_bytes(), f"after step {done} of {steps}")

    def test_what_is_wrong_is_told_by_its_flag_or_its_field(self):
        done, steps = self.interrupt()
        rest = ("--steps", str(steps), "--resume", self.part)
        for flags, code, told in (
                ((*rest, "--steps", "7"), USAGE, f"is of the schedule {{steps:{steps}}}, this loop of {{steps:7}}"),
                ((*rest, "--seed", "1"), USAGE, "is of the noise {seeds:[0]"),
                ((*rest, "--dtype", "float32"), USAGE, "is not float32, as --dtype is"),
                ((*rest, "--first-step", "0"), USAGE, f"has the latents after step {done}, --first-step is 0"),
                (("--latents-every", "1", "--save-latents", "x.npy"), USAGE, "--save-latents: .npy has no bfloat16"),
                (("--strength", "0.5"), USAGE, "--strength needs --image"),
                (("--image", self.part, "--height", "32"), 1, "image.shape: "),
                (("--seed", "1,2,3", "--batch", "2"), 1, "noise.seeds: "),
                (("--sigmas", "0.5,0.75"), 1, "schedule.sigmas[1]: "),
                (("--steps", "1001"), 1, "schedule.steps: 1001"),
                (("--height", "30"), 1, "height: 30")):
            with self.subTest(flags=flags):
                refused = self.denoise(*flags)
                self.assertEqual(refused.returncode, code, refused)
                self.assertIn(told, refused.stderr)


if __name__ == "__main__":
    unittest.main()
