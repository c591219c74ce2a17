# One page per run, readable without anything else, and the figures of merit as JSON.
rule report:
    input:
        made_by("report"),
    localrule: True


rule write_report:
    input:
        simulations=of_each_study("{study}/simulate/manifest.json"),
        checks=products("cross-check"),
        features=of_each_study("{study}/preprocess/manifest.json"),
        bundles=all_bundles(),
        sweeps=products("sweep"),
        baselines=of_each_study("{study}/baseline/manifest.json"),
        posteriors=of_each_study("{study}/infer/manifest.json"),
        metrics=of_each_study("{study}/evaluate/metrics.json"),
    output:
        page=report(
            f"{RESULTS}/report.html",
            caption="../report/page.rst",
            category="Report",
        ),
        metrics=report(
            f"{RESULTS}/metrics.json",
            caption="../report/metrics.rst",
            category="Figures of merit",
        ),
        figures=report(
            directory(f"{RESULTS}/figures"),
            patterns=["{figure}.svg"],
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
    log:
        f"{RESULTS}/logs/write_report.log",
    benchmark:
        f"{RESULTS}/benchmarks/write_report.tsv"
    conda:
        "../../envs/environment.cpu.yaml"
    threads: 4  # studies drawn at once
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        determined_by=determined_by("report"),
    script:
        "../scripts/write_report.py"
