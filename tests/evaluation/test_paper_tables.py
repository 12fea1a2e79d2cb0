"""The paper's tables, cell by cell."""

from diffusion_bridge_vq.evaluation import append_result, paper_tables, read_results
from diffusion_bridge_vq.evaluation.tables import all_results


def parse(text: str) -> dict[str, dict[str, list[str]]]:
    """{title: {row: cells}} of all tables, header under the row ''."""
    tables, title = {}, ""
    for line in text.splitlines():
        if line.startswith("Table"):
            title = line
            tables[title] = {}
        elif line.startswith("|") and "---" not in line:
            name, *cells = [c.strip() for c in line.strip("|").split("|")]
            tables[title][name] = cells
    return tables


def test_the_papers_numbers_and_empty_cells():
    kl, mini, cifar = parse(paper_tables([])).values()
    assert kl["PixelCNN"] == ["0.809", "", ""] and kl["bridge"] == ["0.713", "", ""]
    assert cifar["PixelCNN"] == ["1.41 (0.06)", "", "109", "", "0.21 (0.0008)", ""]
    assert cifar["bridge"] == ["1.33 (0.18)", "", "104", "", "0.05 (0.0005)", ""]
    assert cifar["bridge end-to-end"] == ["1.59 (0.27), another codebook", "", "92", "", "0.11 (0.0005)", ""]
    assert mini["PixelCNN"] == ["1.00 (0.05)", "", "98", "", "10.6 (0.028)", ""]
    assert mini["bridge"] == ["0.94 (0.02)", "", "99", "", "1.7 (0.010)", ""]
    assert "bridge end-to-end" not in mini
    assert paper_tables([]).rstrip().endswith("|")  # no notes


def test_ours_stand_beside_with_their_facts(tmp_path):
    path = tmp_path / "results.json"
    cifar = {"dataset": "cifar10", "model": "bridge"}
    append_result(path, "frechet", 99.0, n=10, seed=0, extractor="inception", **cifar)
    append_result(path, "frechet", 8.04, n=5000, seed=3, extractor="efficientnet-lite0", reference="train", **cifar)
    append_result(path, "nll", 1.2345, std=0.1234, n=1000, seed=0, steps=50, **cifar)
    append_result(path, "kl", 0.48, n=1000, seed=0, **cifar)
    append_result(path, "seconds_per_sample", 0.000123, n=10, seed=0, dataset="miniimagenet", model="bridge-e2e")
    append_result(path, "psnr", 25.0, n=10, seed=0)
    text = paper_tables(read_results(path))
    kl, mini, cifar = parse(text).values()
    assert kl["bridge"] == ["0.713", "", "0.48 [1]"]
    assert mini["bridge end-to-end"] == ["", "", "", "", "", "0.000123 [2]"]
    assert cifar["bridge"] == [
        "1.33 (0.18)",
        "1.23 (0.12) [3]",
        "104",
        "8.04 (efficientnet-lite0) [4]",
        "0.05 (0.0005)",
        "",
    ]
    notes = [line for line in text.splitlines() if line[:1].isdigit()]
    assert [note.split(":")[0] for note in notes] == [
        "1. CIFAR-10, bridge, kl",
        "2. miniImageNet, bridge end-to-end, seconds_per_sample",
        "3. CIFAR-10, bridge, nll",
        "4. CIFAR-10, bridge, frechet",
    ]
    assert "n 1000; seed 0; steps 50; device CPU" in notes[2]
    assert "n 5000; reference train; extractor efficientnet-lite0; seed 3; device CPU" in notes[3]
    assert "command" in notes[3] and "; time 20" in notes[3]


def test_every_row_has_as_many_cells_as_its_header():
    for table in parse(paper_tables([])).values():
        assert len({len(cells) for cells in table.values()}) == 1


def test_all_results_has_a_table_per_data_set_with_the_latest_of_each():
    results = [
        {"name": "nll", "value": 2.0, "n": 10, "dataset": "mine", "model": "bridge"},
        {"name": "nll", "value": 1.25, "std": 0.5, "n": 20, "dataset": "mine", "model": "bridge"},
        {"name": "psnr", "value": 24.68, "n": 5, "dataset": "mine", "model": "pixelcnn"},
        {"name": "kl", "value": 0.5, "n": 7, "dataset": "other", "model": "bridge"},
    ]
    lines = all_results(results).splitlines()
    assert "| nll | 1.25 (0.5), n 20 |  |" in lines
    assert "| psnr |  | 24.68, n 5 |" in lines
    assert "| kl | 0.5, n 7 |" in lines
    assert sum("All results on" in line for line in lines) == 2
    assert all_results([]) == ""


def test_values_that_are_no_numbers_are_passed_over():
    facts = {"dataset": "cifar10", "model": "bridge"}
    results = [{"name": "kl", "value": 0.5, **facts}, {"name": "kl", "value": {"map": [0.5]}, **facts}]
    assert parse(paper_tables(results))["Table 1: KL between code histograms, mean over positions, in nats."][
        "bridge"
    ] == ["0.713", "", "0.5 [1]"]
    assert "| kl | 0.5 |" in all_results(results).splitlines()


def test_figures_of_weights_that_a_model_no_longer_has_are_left_out():
    old = {"n": 10, "dataset": "cifar10", "model": "bridge", "weights": "old"}
    new = {"n": 10, "dataset": "cifar10", "model": "bridge", "weights": "new"}
    other = {"n": 10, "dataset": "cifar10", "model": "pixelcnn", "weights": "old"}
    results = [
        {"name": "kl", "value": 0.1, **old},
        {"name": "kl", "value": 0.2, **other},
        {"name": "nll", "value": 3.0, **old},
        {"name": "kl", "value": 0.4, **new},
    ]
    kl, _, cifar = parse(paper_tables(results)).values()
    assert kl["bridge"][2].startswith("0.4 ") and kl["PixelCNN"][2].startswith("0.2 ")
    assert cifar["bridge"][1] == ""
    lines = all_results(results).splitlines()
    assert "| kl | 0.4, n 10 | 0.2, n 10 |" in lines or "| kl | 0.2, n 10 | 0.4, n 10 |" in lines
    assert not any(line.startswith("| nll") for line in lines)
