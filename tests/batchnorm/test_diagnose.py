"""diagnose and its report: each code on a small model, the numbers in its evidence, and what is left as it was."""

import json
import math
import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose
from random_nets import random_net

import tinygrad_bn as tg
from tinygrad_bn import nn
from tinygrad_bn.batchnorm import Report, diagnose, layers, recalibrate
from tinygrad_bn.batchnorm.layers import in_code
from tinygrad_bn.batchnorm.measures import slope
from tinygrad_bn.batchnorm.report import CODES, WIDTH, Finding


def data(n=256, d=6, seed=0, classes=3):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    x = rng.normal(size=(n, d)) + np.eye(classes, d)[y] * 2
    return x.astype(np.float32), y.astype(np.int64)


def batches(size=32, **how):
    x, y = data(**how)
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def net(*more, width=16, **how):
    """Linear-BatchNorm-ReLU-Linear with precise statistics."""
    tg.manual_seed(0)
    layer = nn.BatchNorm1d(width, **how)
    model = nn.Sequential(*more, nn.Linear(6, width, bias=False), layer, nn.ReLU(), nn.Linear(width, 3))
    recalibrate(model, batches())
    layer.num_batches_tracked = 1000
    return model


def the_norm(model):
    return layers(model)[0][1]


def test_a_healthy_model_has_no_finding_but_notes():
    report = diagnose(net(), batches())
    assert not report and not [f for f in report.findings if f.severity != "note"]
    assert "nothing found" in Report("Net", []).headline()


def test_never_updated():
    model = net()
    the_norm(model).reset_running_stats()
    found = diagnose(model, batches())["never_updated"]
    assert (found.severity, found.layer) == ("error", "1")
    the_norm(model).momentum = 0.0
    found = diagnose(model, batches())["never_updated"]
    exec(found.mend, {"tg": tg, "model": model, "train_batches": batches()})
    assert the_norm(model).momentum == 0.1 and "never_updated" not in diagnose(model, batches())


@pytest.mark.parametrize("momentum, n, told", [(0.1, 43, True), (0.1, 44, False), (0.01, 458, True), (0.01, 459, False)])
def test_start_value_weighs_above_one_per_cent(momentum, n, told):
    model = net(momentum=momentum)
    layer = the_norm(model)
    layer.running_mean = nn.Buffer(layer.running_mean.numpy() + 0.1)  # not precise
    layer.num_batches_tracked = n
    report = diagnose(model, batches())
    assert ("start_value_weighs" in report) == told
    if told:
        evidence = report["start_value_weighs"].evidence
        assert evidence["share_of_start"] == pytest.approx((1 - momentum) ** n) and evidence["batches_missing"] == 1


@pytest.mark.parametrize("momentum, told", [(0.9, True), (0.99, True), (0.5, True), (0.3, False), (None, False)])
def test_momentum_swapped(momentum, told):
    model = net(momentum=momentum)
    the_norm(model).running_mean = nn.Buffer(the_norm(model).running_mean.numpy() + 0.1)
    report = diagnose(model, batches())
    assert ("momentum_swapped" in report) == told
    if told:
        exec(report["momentum_swapped"].mend, {"tg": tg, "model": model, "train_batches": batches()})
        assert the_norm(model).momentum == pytest.approx(1 - momentum)


def test_statistics_far_says_how_far_and_names_the_layer():
    model = net()
    layer = the_norm(model)
    layer.running_mean = nn.Buffer(layer.running_mean.numpy() + 2 * np.sqrt(layer.running_var.numpy()))
    found = diagnose(model, batches())["statistics_far"]
    assert found.evidence["mean_off_by"] == pytest.approx(2, abs=0.1) and found.layer == "1"
    assert 0 < found.evidence["interval"] < 0.5


def test_the_gamma_law():
    """BATCHNORM's table, and a simulation of it."""
    for m, expected in ((2, 0.564), (4, 0.798), (8, 0.903), (16, 0.952), (32, 0.976), (64, 0.988)):
        assert slope(m) == pytest.approx(expected, abs=5e-4)
        sd = np.random.default_rng(m).normal(size=(40_000, m)).std(1).mean()
        assert slope(m) == pytest.approx(sd, rel=5e-3)


def test_small_statistics_batch_has_the_law_beside_the_measured():
    for size, severity in ((2, "error"), (4, "warning"), (16, "note")):
        found = diagnose(net(), batches(size, n=4096))["small_statistics_batch"]
        assert found.severity == severity and found.evidence["values_per_channel"] == size
        assert found.evidence["slope_measured"] == pytest.approx(slope(size), rel=0.05)
        assert found.evidence["noise_by_law"] == pytest.approx(1 - slope(size) ** 2)
    assert "small_statistics_batch" not in diagnose(net(), batches(64))


def test_ghost_batches_count_as_the_batches_that_they_are():
    model = net()
    tg.batchnorm.convert(model, "ghost", ghost_size=4)
    assert diagnose(model, batches(64))["small_statistics_batch"].evidence["values_per_channel"] == 4


def test_dependent_batches():
    x, y = data()
    order = np.argsort(y, kind="stable")
    in_order = [(x[r], y[r]) for r in np.split(order, 8)]
    found = diagnose(net(), in_order)["dependent_batches"]
    assert found.evidence["variance_between_batches_over_expected"] > found.evidence["limit"]
    assert found.evidence["same_for_the_classes"] > 5
    assert "dependent_batches" not in diagnose(net(), batches())
    assert "dependent_batches" in diagnose(net(), [x for x, _ in in_order])  # without labels too


def test_batch_of_one_by_running():
    uneven = [*batches(), tuple(v[:1] for v in data())]
    found = diagnose(net(), uneven)["batch_of_one"]
    assert found.evidence == {"batches": 1, "sizes": [1], "of": 9}
    names = {"train_batches": uneven}
    exec(found.mend, names)
    assert len(names["train_batches"]) == 8


def test_dead_channels_and_small_gammas():
    model = net()
    layer = the_norm(model)
    layer.bias.data = np.where(np.arange(16) < 8, -99, 0).astype(np.float32)
    found = diagnose(model, batches())["dead_channel"]
    assert found.severity == "warning" and found.evidence["channels"] == list(range(8))
    exec(found.mend, {"tg": tg, "model": model, "train_batches": batches()})
    assert "dead_channel" not in diagnose(model, batches())
    gamma = np.ones(16, np.float32)
    gamma[:2] = 1e-5
    layer.weight.data = gamma
    assert diagnose(model, batches())["gamma_near_zero"].severity == "note"  # two of sixteen
    gamma[:4] = 1e-5
    layer.weight.data = gamma
    report = diagnose(model, batches())
    assert report["gamma_near_zero"].severity == "warning" and "dead_channel" not in report


def test_a_constant_input_is_a_dead_channel():
    model = net()
    model[0].weight.data = np.where(np.arange(16)[:, None] < 5, 0, model[0].weight.detach().numpy()).astype(np.float32)
    recalibrate(model, batches())
    assert diagnose(model, batches())["dead_channel"].evidence["channels"] == [0, 1, 2, 3, 4]


def test_a_channel_that_is_never_positive_is_not_dead_without_a_relu():
    model = net()
    setattr(model, "2", nn.Tanh())
    the_norm(model).bias.data = np.full(16, -99, np.float32)
    assert "dead_channel" not in diagnose(model, batches())


def test_bias_before_batchnorm_and_its_exact_mend():
    tg.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    recalibrate(model, batches())
    x = tg.tensor(data()[0])
    before = model.eval()(x).detach().numpy()
    report = diagnose(model, batches())
    found = report["bias_before_batchnorm"]
    assert found.severity == "note" and found.evidence["parameters"] == 8 and not report
    exec(found.mend, {"tg": tg, "model": model})
    assert model[0].bias is None
    assert_allclose(model(x).detach().numpy(), before, atol=1e-5)


def test_dropout_before_batchnorm():
    model = net(nn.Dropout(0.5))
    with warnings.catch_warnings():
        for x, _ in batches():
            for _ in range(8):
                model(tg.tensor(x))
    report = diagnose(model, batches())
    found = report["dropout_before_batchnorm"]
    assert found.severity == "warning" and found.evidence["p"] == 0.5
    assert found.evidence["variance_in_training_over_evaluation"] > 1.2
    recalibrate(model, batches())
    assert diagnose(model, batches())["dropout_before_batchnorm"].severity == "note"
    behind = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    assert "dropout_before_batchnorm" not in diagnose(recalibrate(behind, batches()), batches())


def test_weight_decay_on_gamma_beta():
    model = net()
    for make, options in ((tg.optim.SGD, {"momentum": 0.9, "nesterov": True}), (tg.optim.AdamW, {"betas": (0.8, 0.99)})):
        optimizer = make(model.parameters(), lr=0.1, weight_decay=0.01, **options)
        found = diagnose(model, batches(), optimizer=optimizer)["weight_decay_on_gamma_beta"]
        assert set(found.evidence["parameters"]) == {"1.weight", "1.bias"}
        names = {"tg": tg, "model": model}
        exec(found.mend, names)
        again = names["optimizer"]
        assert type(again) is make and again.param_groups[0]["weight_decay"] == 0.01
        assert all(again.param_groups[0][k] == v for k, v in options.items())
        assert "weight_decay_on_gamma_beta" not in diagnose(model, batches(), optimizer=again)


def test_variance_near_eps():
    model = net()
    small = [(x * 1e-3, y) for x, y in batches()]
    found = diagnose(recalibrate(model, small), small)["variance_near_eps"]
    v, eps = found.evidence["variance"], found.evidence["eps"]
    assert found.evidence["output_smaller_by"] == pytest.approx(math.sqrt(v / (v + eps)), rel=1e-3)
    exec(found.mend, {"model": model})
    assert "variance_near_eps" not in diagnose(model, small)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_nonfinite_statistics_names_the_first_layer(value):
    tg.manual_seed(0)
    model = recalibrate(tg.models.mlp((6, 8, 8, 8, 3)), batches())
    for _, layer in layers(model)[1:]:
        bad = layer.running_var.numpy().copy()
        bad[3] = value
        layer.running_var = nn.Buffer(bad)
    found = diagnose(model, batches())["nonfinite_statistics"]
    path = layers(model)[1][0]
    assert (found.layer, found.evidence["channels"]) == (path, {"running_var": [3]}) and len(found.evidence["layers"]) == 2


def test_nonfinite_parameters_are_said_too():
    model = net()
    model[0].weight.data = np.full((16, 6), np.nan, np.float32)
    the_norm(model).running_mean = nn.Buffer(np.full(16, np.nan, np.float32))
    report = diagnose(model, batches())
    assert report["nonfinite_statistics"].evidence["parameters_too"] == ["0.weight"] and "precise statistics" in report.trouble


def test_half_precision_statistics_of_a_model_that_cannot_run_and_of_one_that_can():
    model = net()
    layer = the_norm(model)
    layer.running_mean, layer.running_var = (
        nn.Buffer(b.numpy().astype(np.float16)) for b in (layer.running_mean, layer.running_var)
    )
    report = diagnose(model, batches())
    assert report.codes[0] == "half_precision_statistics" and "could not be run" in report.trouble and report.cost is None
    exec(report.findings[0].mend, {"model": model})
    assert not diagnose(model, batches())


def test_cost_is_of_the_same_data_in_three_ways():
    model = net()
    layer = the_norm(model)
    x, y = data(seed=5)
    right = recalibrate(model, batches()).state_dict()
    layer.running_mean = nn.Buffer(layer.running_mean.numpy() + 5)
    cost = diagnose(model, batches(), [(x, y)]).cost
    with tg.no_grad():
        wrong = model.eval()(tg.tensor(x))
        by_batch = model.train()(tg.tensor(x))
        model.load_state_dict(right)
        precise = model.eval()(tg.tensor(x))
    for score, out in ((cost.evaluation, wrong), (cost.training, by_batch), (cost.precise, precise)):
        assert score.loss == pytest.approx(tg.cross_entropy(out, tg.tensor(y)).item(), rel=1e-5)
        assert score.accuracy == pytest.approx(100 * (out.numpy().argmax(1) == y).mean())
    assert (cost.on, cost.examples) == ("evaluation data", 256)


def test_another_loss_and_no_labels():
    tg.manual_seed(0)
    model = recalibrate(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)), batches())
    pairs = [(x, x[:, :1] * 2) for x, _ in batches()]
    cost = diagnose(model, pairs, loss=tg.mse_loss).cost
    assert cost.evaluation.accuracy is None and cost.evaluation.loss > 0
    assert diagnose(model, [x for x, _ in batches()]).cost.evaluation.loss is None


def test_an_error_of_the_model_is_passed_on_and_the_model_is_as_it_was():
    class Fails(nn.Module):
        def __init__(self):
            self.norm = nn.BatchNorm1d(6)

        def forward(self, x):
            self.norm(x)
            raise RuntimeError("broken")

    model = Fails()
    held, state = [id(b) for b in model.buffers()], tg.get_rng_state()
    with pytest.raises(RuntimeError, match="broken"):
        diagnose(model, batches())
    assert held == [id(b) for b in model.buffers()] and model.norm.num_batches_tracked == 0 and tg.get_rng_state() == state
    assert "training" not in vars(model)


def test_the_random_state_and_the_place_of_batches_stay():
    model, loader = net(nn.Dropout(0.5)), tg.datasets.batches(*data(), 32, shuffle=True)
    state, place = tg.get_rng_state(), loader.state_dict()
    diagnose(model, loader)
    assert tg.get_rng_state() == state and loader.state_dict() == place


def test_diagnose_refuses_what_it_cannot_use():
    for args, options, error, text in (
        (("model", batches()), {}, TypeError, "expected a Module, got str"),
        ((net(), []), {}, ValueError, "at least one batch"),
        ((net(), batches()), {"loss": 3}, TypeError, "loss to be a function"),
        ((net(), batches()), {"optimizer": [1]}, TypeError, "optimizer to be an Optimizer, got list"),
        ((nn.Linear(6, 3), batches()), {}, ValueError, "without any"),
    ):
        with pytest.raises(error, match=text):
            diagnose(*args, **options)


def test_a_layer_never_called_is_said():
    model = net()
    model[0].spare = nn.BatchNorm1d(3)
    assert "never called: 0.spare" in diagnose(model, batches()).trouble


def test_frozen_layers_are_not_told_to_take_larger_batches():
    model = tg.batchnorm.freeze(net())
    assert "small_statistics_batch" not in diagnose(model, batches(4))


# ----- the report


def broken():
    model = net()
    the_norm(model).reset_running_stats()
    return diagnose(model, batches())


def test_findings_are_sorted_by_severity_then_cause():
    told = {"bias_before_batchnorm": "note", "statistics_far": "error", "never_updated": "error", "dead_channel": "warning"}
    report = Report("M", [Finding(code, severity, "", "w", "m") for code, severity in told.items()])
    assert report.codes == ["never_updated", "statistics_far", "dead_channel", "bias_before_batchnorm"]
    assert bool(report) and report.headline() == "2 errors, 1 warning, 1 note in M"
    with pytest.raises(KeyError):
        report["momentum_swapped"]


def test_text_fits_the_terminal_and_holds_code_evidence_and_mend():
    text = str(broken())
    assert all(len(line) <= WIDTH for line in text.splitlines() if "mend:" not in line)
    for word in (
        "ERROR never_updated at 1",
        "evidence: num batches tracked 0",
        "mend: tg.batchnorm.recalibrate",
        "accuracy, %",
    ):
        assert word in text


def test_json_holds_everything_even_what_is_not_finite(tmp_path):
    model = net()
    the_norm(model).running_mean = nn.Buffer(np.full(16, np.nan, np.float32))
    report = diagnose(model, batches())
    text = report.to_json(tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    assert found == json.loads(text) and found["findings"][0]["code"] == "nonfinite_statistics"
    assert found["layers"][0]["running_mean"][0] == "NaN"
    assert set(found["findings"][0]) == {"code", "severity", "layer", "evidence", "cost", "why", "mend"}


def test_every_code_of_a_finding_is_in_the_list():
    assert set(CODES) >= set(broken().codes) and len(CODES) == len(set(CODES)) == 18


def test_paths_as_python_writes_them():
    assert [in_code(p) for p in ("", "1", "blocks.0.norm1")] == ["model", "model[1]", "model.blocks[0].norm1"]


@pytest.mark.parametrize("seed", range(0, 40, 3))
def test_any_network_can_be_examined_and_its_report_written(seed, tmp_path):
    model, x = random_net(seed)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(12, *x.shape[1:])).astype(np.float32)
    report = diagnose(model, [x[:5], x[5:10], x[10:]])
    str(report), report.to_json(), report.to_html(tmp_path / "r.html"), report._repr_html_()
    assert [row["layer"] for row in report.layers] and not report.trouble


def test_layers_without_running_statistics_have_no_finding_about_them():
    tg.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 3))
    report = diagnose(model, batches())
    assert not report and report.cost.precise is None and report.layers[0]["tracks"] is False


def test_a_dead_channel_without_gamma_gets_new_weights():
    tg.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8, affine=False), nn.ReLU(), nn.Linear(8, 3))
    model[0].weight.data = np.zeros((8, 6), np.float32)
    found = diagnose(recalibrate(model, batches()), batches())["dead_channel"]
    exec(found.mend, {"tg": tg, "model": model, "train_batches": batches()})
    assert "dead_channel" not in diagnose(model, batches())


def test_batches_of_one_alone_and_a_layer_never_called_with_a_small_gamma():
    x, y = data(6)
    report = diagnose(net(), [(x[i : i + 1], y[i : i + 1]) for i in range(6)])
    assert report.codes[0] == "batch_of_one" and report["batch_of_one"].evidence["batches"] == 6
    model = net()
    model[0].spare = nn.BatchNorm1d(3)
    model[0].spare.weight.data = np.zeros(3, np.float32)
    the = model[1]
    the.running_mean = nn.Buffer(the.running_mean.numpy() + 5)
    report = diagnose(model, batches())
    assert {"gamma_near_zero", "statistics_far"} <= set(report.codes) and "never called" in report.trouble


def test_statistics_far_behind_a_dead_layer_are_the_effect_of_it():
    tg.manual_seed(0)
    model = recalibrate(tg.models.mlp((6, 12, 12, 3), activation="relu"), batches())
    (first, layer), (second, _) = layers(model)
    layer.bias.data = np.where(np.arange(12) < 9, -99, 0).astype(np.float32)
    report = diagnose(model, batches())
    assert report["dead_channel"].layer == first and "statistics_far" not in report
    layer.bias.data = np.zeros(12, np.float32)
    layers(model)[1][1].running_mean = nn.Buffer(np.full(12, 9, np.float32))
    assert diagnose(model, batches())["statistics_far"].layer == second


def test_one_logit_has_no_accuracy():
    tg.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    rng = np.random.default_rng(0)
    data = [(rng.normal(size=(16, 6)).astype(np.float32), rng.integers(0, 2, 16)) for _ in range(4)]
    cost = diagnose(model, data, loss=lambda out, _y: (out * out).mean()).cost
    assert cost.evaluation.accuracy is None and cost.evaluation.loss is not None


def test_a_mend_is_python_whatever_an_attribute_is_called():
    model, inner = nn.Module(), nn.Sequential(nn.BatchNorm1d(3))
    setattr(model, "lambda", inner)
    setattr(inner, 'two words"', nn.BatchNorm1d(3))
    for path, module in model.named_modules():
        assert eval(in_code(path), {"model": model}) is module
