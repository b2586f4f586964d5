"""bench/headline.py: its limits, and that docs/cuda.md has what it computes."""

import os
import sys
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import headline  # noqa: E402
from headline import COPY_OVERHEAD, Module, sweep, synchronous  # noqa: E402

LINK = 1e9
THREE = [Module(f"module{i}", 1000 * (i + 1), 0) for i in range(3)]  # 2, 4 and 6 us of link in bfloat16.
COPYING = [COPY_OVERHEAD.value + 2 * module.elements() / LINK for module in THREE]


class HeadlineTest(unittest.TestCase):
    def assert_takes(self, seconds: list[float], window: float, expected: float) -> None:
        self.assertAlmostEqual(sweep(THREE, seconds, LINK, 2, 2, window).seconds, expected, places=12)

    def test_the_longer_of_moving_and_computing_is_what_a_pass_takes(self):
        self.assert_takes([0, 0, 0], 1e9, sum(COPYING))
        self.assert_takes([1, 1, 1], 1e9, COPYING[0] + 3)

    def test_the_next_copy_waits_for_room_in_the_window(self):
        self.assert_takes([1, 1, 1], 0, sum(COPYING) + 3)  # One at a time.
        self.assert_takes([1, 0, 0], 10000, COPYING[0] + 1 + COPYING[2])  # The third takes the first one's place.
        self.assertEqual(sweep(THREE, [1, 1, 1], LINK, 2, 2, 10000).window_bytes, 10000)

    def test_a_synchronous_pass_overlaps_nothing(self):
        self.assertAlmostEqual(synchronous(THREE, [1, 2, 3], LINK), sum(COPYING) + 6, places=12)

    def test_the_model_is_the_real_one(self):
        modules, *_ = headline.read_modules(Path(os.environ["DITSERVE_BIN"]))
        self.assertEqual(sum(module.elements() for module in modules), 20_430_401_088)
        unread = sum(2 * module.elements() for module in modules) - sum(2 * module.elements() for module in headline.taken_of(modules))
        self.assertEqual(unread, 188_786_944 + 2 * 4 * 3072 * 3073)
        self.assertEqual({module.rows(4096, 5) for module in modules if "txt_mlp" in module.path}, {5})
        self.assertAlmostEqual(headline.flop_of(modules, 4096, 5) / headline.flop_of_blocks(60, 4096, 5), 1, places=2)

    def test_a_loop_takes_what_makes_modulation_once(self):
        modules, activation_bytes, _ = headline.read_modules(Path(os.environ["DITSERVE_BIN"]))
        kept = sum(module.elements() for module in headline.taken_of(modules) if module.makes_modulation())
        used = sum(module.elements() for module in headline.taken_of(modules))
        self.assertAlmostEqual(2 * kept / 13.6e9, 1, places=1)
        self.assertEqual(headline.modulation_bytes(modules), 2 * 3072 * (2 * 6 * 60 - 4 + 2))
        row = headline.loop_row(headline.H100, modules, headline.BF16, activation_bytes)
        self.assertIn(f"| {2 * (used + 49 * (used - kept)) / 1e9:,.0f} GB |", row)
        some, moved = headline.loop(headline.H100, modules, headline.BF16, kept=28)
        self.assertEqual(moved, 2 * (used + 27 * (used - kept) + 22 * used))
        self.assertGreater(some.seconds, headline.loop(headline.H100, modules, headline.BF16)[0].seconds)

    def test_as_many_rows_are_kept_as_a_server_keeps_by_default(self):
        modules, *_ = headline.read_modules(Path(os.environ["DITSERVE_BIN"]))
        self.assertEqual([headline.rows_by_default(modules, budget) for budget in (1.01e9, 1.76e9, 1.77e9, 1e12)],
                         [28, 49, 50, 50])

    def test_float8_shortens_products_alone_and_only_where_they_were_measured(self):
        card = headline.RTX_5090
        product, attention = Module("img_mlp", 10**6, 0), Module("transformer_blocks.0.attn.to_out.0", 0, 0)
        (wide, other), (narrow, same) = (headline.times([product, attention], card, width)
                                         for width in (headline.BF16, headline.FP8))
        flop = product.product_flop(4096, 5)
        self.assertAlmostEqual((wide - narrow) / (flop / card.gemm.value - flop / card.float8.value), 1)
        self.assertEqual(other, same)
        self.assertEqual({card.name for card in headline.CARDS if card.float8}, {"H100 SXM", "RTX 5090", "L40S"})
        self.assertLess(synchronous(THREE, [0, 0, 0], LINK, headline.FP8), synchronous(THREE, [0, 0, 0], LINK))

    def test_the_document_has_what_is_computed(self):
        computed = headline.document(*headline.read_modules(Path(os.environ["DITSERVE_BIN"])))
        text = (ROOT / "docs/cuda.md").read_text()
        self.assertTrue(headline.replaced(text, computed) == text,
                        "docs/cuda.md is not what bench/headline.py --write docs/cuda.md makes of it")


if __name__ == "__main__":
    unittest.main()
