# One job per model; several run side by side. A GPU and more cores come from the profile. Trainings take longest: they
# begin before what may run beside them (`priority`), and what they wait for before that, for every study: it uses many
# cores, and would wait for the trainings of others. The scheduler adds the priorities of the jobs that fit together.
rule train:
    input:
        made_by("train"),
    localrule: True


rule train_model:
    input:
        features=f"{RESULTS}/{{study}}/preprocess/manifest.json",
    output:
        bundle=f"{RESULTS}/{{study}}/models/{{model}}/bundle.json",
    log:
        f"{RESULTS}/{{study}}/logs/train_model.{{model}}.log",
    benchmark:
        f"{RESULTS}/{{study}}/benchmarks/train_model.{{model}}.tsv"
    priority: longest_first
    conda:
        "../../envs/environment.gpu.yaml"
    threads: 1
    resources:
        mem_mb=6000,
        runtime=1440,
    params:
        determined_by=determined_by("train"),
    script:
        "../scripts/train_model.py"
