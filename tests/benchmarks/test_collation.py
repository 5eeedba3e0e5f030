from support import load_script


def test_both_ways_to_count_form_the_same_batches(capsys):
    options = "--examples 2 --negatives 1 3 --prompts 50 --rows 40 --budget 300 --most 8 --rounds 1 --many 50"
    with load_script("benchmarks/collation.py") as collation:
        collation.main(options.split())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * (4 + 2)
    assert all(float(line.split("|")[5]) >= 0 for line in lines[2:])
