"""Figures that a page quotes, `{{ name }}`, each read out of the file that a benchmark left: none is typed."""

import json
from functools import cache

from . import ROOT

# name: file of data/, rival, budget, figure of a contest's summary, digits
CONTESTS = {
    "gal_lost": ("gal/fashion", "GAL", 3, "accuracy_drop", 2),
    "gal_rival": ("gal/fashion", "uniform L1", 3, "accuracy_drop", 2),
    "gal_fewer": ("gal/fashion", "GAL", 3, "macs_ratio", 1),
    "gal_faster": ("gal/fashion", "GAL", 3, "latency_ratio", 2),
    "gal_longer": ("gal/longer", "GAL", 3, "accuracy_drop", 2),
    "gal_longer_rival": ("gal/longer", "uniform L1", 3, "accuracy_drop", 2),
    "gates_lost": ("decoupling/fashion", "Decoupling", 0.6, "accuracy drop", 1),
    "gates_rival": ("decoupling/fashion", "static largest norms", 0.6, "accuracy drop", 1),
    "pams_lost": ("pams/photos", "PAMS", "4 bits", "lost", 2),
    "pams_rival": ("pams/photos", "least squares", "4 bits", "lost", 2),
    "pams_two": ("pams/photos", "PAMS", "2 bits", "lost", 2),
    "pams_two_rival": ("pams/photos", "least squares", "2 bits", "lost", 2),
    "dqss_lost": ("dqss/exhaustive", "DQSS's search", "4 bits", "held_out_behind", 2),
    "dqss_rival": ("dqss/exhaustive", "best uniform pair for the calibration", "4 bits", "held_out_behind", 2),
    "blocks_lost": ("sparsebytenn/fashion", "blocks of 4", 0.5, "accuracy_drop", 2),
    "blocks_rival": ("sparsebytenn/fashion", "single weights", 0.5, "accuracy_drop", 2),
    "fold_perplexity": ("foldgpt/budget", "FoldGPT", "", "perplexity, times the whole model's", 3),
    "fold_rival": ("foldgpt/budget", "SLEB", "", "perplexity, times the whole model's", 3),
    "fold_file": ("foldgpt/budget", "FoldGPT", "", "bytes", 2),
    "chain_four": ("chains/bytes", "prune, then 8 bits", 4, "accuracy_drop", 1),
    "alone_four": ("chains/bytes", "quantise alone", 4, "accuracy_drop", 1),
    "chain_three": ("chains/bytes", "prune, then 4 bits", 3, "accuracy_drop", 1),
    "alone_three": ("chains/bytes", "quantise alone", 3, "accuracy_drop", 1),
}
# name: file of data/, the way to the figure, factor, digits
OTHERS = {
    "blocks_faster": ("sparsebytenn/speed_avx2", ("figures", "speedup_50"), 1, 2),
    "int8_faster": ("pams/speed", ("figures", "int8_speedup_full"), 1, 1),
    "split_saved": ("hybridsd/figures", ("figures", "cloud_saving"), 100, 0),
    "split_gap": ("hybridsd/figures", ("figures", "semantic_gap"), 1, 1),
    "split_edge_first": ("hybridsd/figures", ("figures", "edge_first_semantic_gap"), 1, 1),
    "ndcg": ("acenas/figures", ("figures", "cifar10", "100", "ndcg10_lambdarank"), 1, 2),
    "ndcg_trees": ("acenas/figures", ("figures", "cifar10", "100", "ndcg10_lightgbm"), 1, 2),
    "ndcg_mse": ("acenas/figures", ("figures", "cifar10", "100", "ndcg10_mse"), 1, 2),
    "regret": ("faces/claim", ("figures", "numbers, tasks 6 to 12", "hyperfd", "mean"), 1, 1),
    "regret_rival": ("faces/claim", ("figures", "numbers, tasks 6 to 12", "best average", "mean"), 1, 1),
    "regret_random": ("faces/claim", ("figures", "numbers, tasks 6 to 12", "random", "mean"), 1, 1),
    "kills": ("reliability/figures", ("kills", "runs"), 1, 0),
    "kills_same": ("reliability/figures", ("kills", "same"), 1, 0),
    "killed": ("reliability/figures", ("kills", "kinds", "killed", 1), 1, 0),
    "interrupted": ("reliability/figures", ("kills", "kinds", "interrupted", 1), 1, 0),
    "fuzz": ("reliability/figures", ("files", "inputs"), 1, 0),
    "fuzz_readers": ("reliability/figures", ("files", "count"), 1, 0),
    "fuzz_faults": ("reliability/figures", ("files", "fault_count"), 1, 0),
    "shapes_avx512": ("reliability/figures", ("kernels", "compared", "avx512"), 1, 0),
    "shapes_avx2": ("reliability/figures", ("kernels", "compared", "avx2"), 1, 0),
    "shapes_neon": ("reliability/figures", ("kernels", "compared", "neon"), 1, 0),
    "shapes_scalar": ("reliability/figures", ("kernels", "compared", "scalar"), 1, 0),
    "shapes_wasm": ("reliability/figures", ("kernels", "compared", "WebAssembly"), 1, 0),
    "watched": ("reliability/figures", ("kernels", "compared", "threads"), 1, 0),
    "kernel_faults": ("reliability/figures", ("kernels", "fault_count"), 1, 0),
    "requests": ("reliability/figures", ("service", "requests"), 1, 0),
    "request_clients": ("reliability/figures", ("service", "clients"), 1, 0),
    "request_faults": ("reliability/figures", ("service", "fault_count"), 1, 0),
    "wire_clients": ("reliability/figures", ("privacy", "clients"), 1, 0),
    "wire_images": ("reliability/figures", ("privacy", "images"), 1, 0),
    "wire_mb": ("reliability/figures", ("privacy", "bytes"), 1e-6, 1),
    "wire_hidden": ("reliability/figures", ("privacy", "hidden"), 1, 0),
    "wire_seen": ("reliability/figures", ("privacy", "seen"), 1, 0),
    "wire_faults": ("reliability/figures", ("privacy", "fault_count"), 1, 0),
    "memory_most": ("reliability/figures", ("memory", "most"), 100, 1),
    "memory_faults": ("reliability/figures", ("memory", "fault_count"), 1, 0),
    "bad_inputs": ("reliability/figures", ("inputs", "inputs"), 1, 0),
    "bad_names": ("reliability/figures", ("inputs", "names"), 1, 0),
    "bad_faults": ("reliability/figures", ("inputs", "fault_count"), 1, 0),
    "alarm_spoiled": ("lens/explain", ("figures", "sabotaged_pairs"), 1, 0),
    "alarm_missed": ("lens/explain", ("figures", "missed"), 1, 0),
    "alarm_sound": ("lens/explain", ("figures", "sound_pairs"), 1, 0),
    "alarm_false": ("lens/explain", ("figures", "false_alarms"), 1, 0),
    "alarm_networks": ("lens/explain", ("figures", "networks"), 1, 0),
    "alarm_ways": ("lens/explain", ("figures", "sabotage"), 1, 0),
    "wasm_faster": ("sparsebytenn/web", ("figures", "wasm_speedup_50"), 1, 1),
}  # fmt: skip


@cache
def read(name: str) -> dict:
    return json.loads((ROOT / "data" / f"{name}.json").read_text(encoding="utf-8"))


def shown(value: float, digits: int) -> str:
    return f"{value + 0.0:.{digits}f}".replace("-0.0", "0.0") if abs(value) < 0.05 else f"{value:.{digits}f}"


def quoted() -> dict[str, str]:
    """Every figure by its name, as text."""
    found = {}
    for name, (file, rival, budget, figure, digits) in CONTESTS.items():
        rows = [row for row in read(file)["summary"] if row["rival"] == rival and row["budget"] == budget]
        found[name] = shown(rows[0][figure], digits)
    for name, (file, way, factor, digits) in OTHERS.items():
        value = read(file)
        for step in way:
            value = value[step]
        found[name] = shown(factor * value, digits)
    return found
