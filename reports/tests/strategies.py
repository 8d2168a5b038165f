"""Any run at all, for claims that hold for every record."""

from __future__ import annotations

from hypothesis import strategies as st

from reports import record

# What JSON can carry: every character but lone surrogates.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
# Names as hostile as foreign text gets: markup of three languages, control and direction characters, line ends.
hostile = st.one_of(
    texts,
    st.lists(
        st.sampled_from(
            [
                "<script>",
                "</td>",
                '"',
                "'",
                "|",
                "`",
                "```",
                "\\",
                "[red]",
                "*",
                "_",
                "&lt;",
                "\x1b[31m",
                "\u202e",
                "\r\n",
                "{{",
                "# ",
                "-->",
            ]
        ),
        min_size=1,
        max_size=8,
    ).map("".join),
)
finite = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(0, 10**9)


def runs(names: st.SearchStrategy[str] = hostile) -> st.SearchStrategy[record.Run]:
    """Runs with every field drawn; ``names`` draws each string."""
    optional = st.none() | finite
    accelerators = st.builds(
        record.Accelerator, name=names, memory_bytes=counts, driver=st.none() | names, capability=st.none() | names
    )
    environments = st.builds(
        record.Environment,
        machine=names,
        cpu=names,
        cores=counts,
        threads=counts,
        memory_bytes=counts,
        accelerator=st.none() | accelerators,
        platform=names,
        python=names,
        packages=st.dictionaries(names, names, max_size=3),
        git=st.none() | names,
        notes=st.lists(names, max_size=2).map(tuple),
    )
    axes = st.dictionaries(names, names, max_size=3)
    stages = st.builds(record.Stage, name=names, own_error=finite, inherited_error=finite)
    failures = st.builds(
        record.Failure,
        id=names,
        message=names,
        example=axes,
        off_simplest=st.lists(names, max_size=2).map(tuple),
        nearest_passing=st.none() | axes,
        error=optional,
        stages=st.lists(stages, max_size=2).map(tuple),
        script=st.none() | names,
        traceback=st.none() | names,
        notes=st.lists(names, max_size=2).map(tuple),
    )
    verdicts = st.builds(
        record.Verdict,
        case=names,
        policy=names,
        property=names,
        statement=names,
        reason=names,
        examples=counts,
        refused=counts,
        refusals=st.dictionaries(names, counts, max_size=2),
        layers_replaced=counts,
        layers_expected=counts,
        worst_error=optional,
        tolerance=optional,
        seconds=finite,
        seed=counts,
        failure=st.none() | failures,
    )
    samples = st.lists(finite, max_size=3).map(tuple)
    timings = st.builds(
        record.Timing,
        case=names,
        workload=names,
        phase=names,
        shape=names,
        dtype=names,
        device=names,
        baseline=names,
        subject=names,
        reason=names,
        ratio=st.none() | st.builds(record.Interval, estimate=finite, low=finite, high=finite, confidence=finite),
        baseline_seconds=samples,
        subject_seconds=samples,
        error=optional,
        layers_replaced=st.none() | counts,
        flops=optional,
        bytes=optional,
        flops_fraction=optional,
        bytes_fraction=optional,
        products_fraction=optional,
        peak_bytes=st.none() | counts,
        rest_bytes=st.none() | counts,
        clock=st.sampled_from(["end-to-end", "device"]),
        warnings=st.lists(names, max_size=2).map(tuple),
        prepare_seconds=optional,
    )
    coverage = st.builds(
        record.Coverage,
        case=names,
        axes=st.dictionaries(names, st.dictionaries(names, counts, max_size=2), max_size=2),
        pairs_seen=counts,
        pairs_claimed=counts,
        missed=st.lists(names, max_size=2).map(tuple),
    )
    budgets = st.builds(
        record.ErrorBudget,
        case=names,
        policy=names,
        dtype=names,
        examples=counts,
        used_median=finite,
        used_worst=finite,
        multiple=finite,
        floor=finite,
    )
    ceilings = st.builds(
        record.Ceilings,
        device=names,
        gemm_flops=st.dictionaries(names, finite, max_size=2),
        copy_bytes=finite,
        warnings=st.lists(names, max_size=2).map(tuple),
    )
    return st.builds(
        record.Run,
        schema=st.just(record.SCHEMA_VERSION),
        id=names,
        created=names,
        command=names,
        profile=names,
        seed=counts,
        seconds=finite,
        environment=environments,
        verdicts=st.lists(verdicts, max_size=2).map(tuple),
        coverage=st.lists(coverage, max_size=2).map(tuple),
        budgets=st.lists(budgets, max_size=2).map(tuple),
        timings=st.lists(timings, max_size=2).map(tuple),
        ceilings=st.lists(ceilings, max_size=1).map(tuple),
        null_lane=st.none() | st.builds(record.NullLane, comparisons=counts, alarms=counts, smallest_effect=optional),
    )
