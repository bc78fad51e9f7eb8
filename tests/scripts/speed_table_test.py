"""The tables of benchmarks/compare_llama_cpp."""

import sys
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import speed_table  # noqa: E402


def measured(**more):
    bench = {"machine_read_gigabytes_per_second": [20.0], "machine_product_gigaflops_per_second": [400.0],
             "weight_bytes": [100_000_000], "decode_fraction_of_machine": [0.9]}
    return {"llama.cpp": {"prefill": [90.0, 100.0, 1000.0], "decode": [50.0, 40.0]},
            "rwkvx": {"prefill": [250.0, 1.0, 260.0], "decode": [90.0]},
            "generate": {"prefill": [240.0], "decode": [80.0]}, "bench": bench, **more}


def result(best=512, **more):
    settings = {"prefill": 512, "decode": 64, "ubatch": 512, "best_ubatch": best, "first_token": 4096,
                "sparse_blocks": 4, "context": 8192}
    return {"settings": settings, "file_bytes": 123_400_000, "measured": measured(**more)}


class SpeedTableTest(unittest.TestCase):
    def rows(self, of):
        return speed_table.speed_rows("bf16", speed_table.medians(of["measured"]), of["settings"])

    def test_medians_and_ratios(self):
        self.assertEqual(self.rows(result()), [["bf16", "prefill 512", "100.0", "250.0", "2.50", "240.0"],
                                               ["bf16", "decode 64", "45.0", "90.0", "2.00", "80.0"]])

    def test_seconds_have_the_ratio_turned_round(self):
        of = result(best=1024)
        of["measured"]["llama.cpp"].update({"first token": [6.0], "first token, best ubatch": [5.0]})
        of["measured"]["rwkvx"]["first token"] = [2.0]
        self.assertEqual(self.rows(of)[2:], [["bf16", "first token of 4096, s; ubatch 512", "6.000", "2.000", "3.00", ""],
                                             ["bf16", "first token of 4096, s; ubatch 1024", "5.000", "2.000", "2.50", ""]])

    def test_the_default_ubatch_may_be_the_best(self):
        of = result(best=512)
        of["measured"]["llama.cpp"]["first token"] = [6.0]
        of["measured"]["rwkvx"]["first token"] = [2.0]
        self.assertEqual([row[1] for row in self.rows(of)[2:]], ["first token of 4096, s; ubatch 512"])

    def test_the_hybrid_stands_beside_plain_decoding(self):
        rows = self.rows(result(**{"rwkv-x": {"decode": [30.0]}}))
        self.assertEqual(rows[2], ["bf16", "decode 64; RWKV-X, 4 sparse blocks, at 8192", "45.0", "30.0", "0.67", ""])

    def test_keys_in_bf16_have_a_row_of_their_own(self):
        rows = self.rows(result(**{"rwkv-x": {"decode": [30.0]}, "rwkv-x bf16": {"decode": [45.0]}}))
        self.assertEqual([row[1:5] for row in rows[2:]],
                         [["decode 64; RWKV-X, 4 sparse blocks, at 8192", "45.0", "30.0", "0.67"],
                          ["decode 64; RWKV-X, 4 sparse blocks, at 8192, keys in bf16", "45.0", "45.0", "1.00"]])

    def test_shares_of_what_the_machine_reads(self):
        row = speed_table.machine_row("bf16", speed_table.medians(measured()), 123_400_000)
        # 100 MB a token: 45 tokens/s read 4.5 of 20 GB/s.
        self.assertEqual(row, ["bf16", "123", "100", "20.0", "400", "22%", "45%", "90%"])

    def test_columns_are_aligned(self):
        text = speed_table.markdown(["a", "n"], [["long name", "1.5"], ["b", "22.5%"], ["c", ""]])
        self.assertEqual(text, "| a         |     n |\n|-----------|------:|\n| long name |   1.5 |\n"
                               "| b         | 22.5% |\n| c         |       |\n")

    def test_a_table_for_all_types(self):
        text = speed_table.tables({"bf16": result(), "q4_0": result()})
        speeds, machine = text.split("\n\n")
        self.assertEqual((len(speeds.splitlines()), len(machine.splitlines())), (6, 4))


if __name__ == "__main__":
    unittest.main()
