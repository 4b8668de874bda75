"""From the command line to typed values: what is taken as it is written, and mistakes in a line that names the key."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import yaml

from pipelines.config import compose, groups_of, typed
from pipelines.pretrain_config import PretrainConfig
from ssl_core.errors import UserError


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as refused:
        typed(PretrainConfig, compose("pretrain", overrides))
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "/data/my images/train",
        "a=b",
        "a,b,c",
        "models:/encoder@champion",
        "models:/encoder/3",
        "s3://bucket/key?x=1&y=2",
        "C:\\data",
        "~/images",
        "it's",
        "[not a list",
        "{not: a dict",
        "#1",
        "a;b|c",
        "100%",
        "$HOME",
        "*",
        "Grüße",
        "choice(1,2)",
        "range(1,3)",
        "-x",
        "a: b",
    ],
)
@pytest.mark.parametrize("key", ["init", "data.train", "tracking.uri"])
def test_odd_text_is_taken_as_it_is_written(key: str, text: str) -> None:
    value: Any = compose("pretrain", [f"{key}={text}"])
    for part in key.split("."):
        value = value[part]
    assert value == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("null", None),
        ("true", True),
        ("12", 12),
        ("1e-3", 0.001),
        ("[1, 2]", [1, 2]),
        ("{a: [x, 1]}", {"a": ["x", 1]}),
        ("'12'", "12"),
        ("", ""),
    ],
)
def test_values_are_what_they_look_like(text: str, value: Any) -> None:
    assert compose("pretrain", [f"init={text}"])["init"] == value


def test_defaults_are_the_yaml() -> None:
    values = compose("pretrain", [])
    assert values["method"] == {"name": "simclr", "temperature": 0.1, "projector": [2048, 128]}
    assert values["model"]["name"] == "resnet50"
    config = typed(PretrainConfig, values)
    assert config.optim.name == "lars"
    assert config.optim.betas == (0.9, 0.999)
    assert config.model.mean is None


def test_values_are_set_over_the_groups_they_belong_to() -> None:
    values = compose("pretrain", ["model.image_size=48", "model=resnet_micro", "optim.betas=[0.5,0.6]", "seed=4"])
    config = typed(PretrainConfig, values)
    assert (config.model.image_size, config.model.stem, config.seed) == (48, "cifar", 4)
    assert config.optim.betas == (0.5, 0.6)


def test_another_librarys_arguments_are_open() -> None:
    overrides = ["model=resnet_micro", "model.arguments.zero_init_last=false", "model.arguments.block_args.rate=2"]
    arguments = typed(PretrainConfig, compose("pretrain", overrides)).model.arguments
    assert arguments["zero_init_last"] is False
    assert arguments["block_args"] == {"rate": 2}
    assert arguments["layers"] == [1, 1, 1, 1]


@pytest.mark.parametrize("command", ["register", "pull", "embed", "probe"])
def test_a_group_of_one_command_is_a_key_of_another(command: str) -> None:
    assert groups_of(command) == []
    assert compose(command, ["model=models:/encoder@champion"])["model"] == "models:/encoder@champion"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.epoch=3", "unknown key train.epoch: did you mean train.epochs?"),
        ("epochs=3", "unknown key epochs: did you mean train.epochs?"),
        ("temperature=3", "unknown key temperature: did you mean method.temperature?"),
        ("data.trian=x", "unknown key data.trian: did you mean data.train?"),
        ("zzzzzz=1", "unknown key zzzzzz: --help lists the keys"),
        ("data.train.x=1", "unknown key data.train.x: did you mean data.train?"),
        ("model.name.x=1", "unknown key model.name.x: did you mean model.name?"),
        ("+seed=1", "unknown key +seed: did you mean seed?"),
        ("model=resnet5", "unknown model=resnet5: did you mean resnet50?"),
        ("method=simclar", "unknown method=simclar: did you mean simclr?"),
        ("method=zzz", "unknown method=zzz: known are "),
        ("experiment=simclr_cifar", "unknown experiment=simclr_cifar: did you mean simclr_cifar10?"),
        ("model=../pretrain", "unknown model=../pretrain"),
        ("seed", "cannot read 'seed': write key=value"),
        ("--seed=1", "cannot read '--seed=1': write key=value"),
        ("=1", "cannot read '=1': write key=value"),
        ("name=${nothing}", "cannot read the configuration: "),
    ],
)
def test_what_is_unknown_is_named_with_the_nearest(override: str, says: str) -> None:
    assert refusal(override).startswith(says)


def test_only_the_group_of_an_unknown_key_is_composed() -> None:
    for command in ("pack", "pull"):
        with pytest.raises(UserError, match="unknown key method: "):
            compose(command, ["method=simclr"])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seed=x", "seed=x has the wrong type: expected a whole number"),
        ("seed=1.5", "seed=1.5 has the wrong type: expected a whole number"),
        ("seed=true", "seed=True has the wrong type: expected a whole number"),
        ("seed=null", "seed=None has the wrong type: expected a whole number"),
        ("train.epochs=many", "train.epochs=many has the wrong type: expected a whole number"),
        ("train.audit=1", "train.audit=1 has the wrong type: expected true or false"),
        ("optim.base_rate=fast", "optim.base_rate=fast has the wrong type: expected a number"),
        ("optim.base_rate=nan", "optim.base_rate=nan: expected a finite number"),
        ("optim.base_rate=inf", "optim.base_rate=inf: expected a finite number"),
        ("optim.betas=[0.9]", "optim.betas=[0.9] has the wrong length: expected 2 values"),
        ("optim.betas=[0.9,x]", "optim.betas[1]=x has the wrong type: expected a number"),
        ("optim.betas=0.9", "optim.betas=0.9 has the wrong type"),
        ("train.precision=fp16", "train.precision=fp16: did you mean fp"),
        ("train.precision=half", "train.precision=half: known are fp64, fp32, bf16"),
        ("data.max_bad=few", "data.max_bad=few has the wrong type: expected a whole number or a number"),
        ("model.mean=[0.1,b]", "model.mean[1]=b has the wrong type: expected a number"),
        ("storage=[a]", "storage=['a'] has the wrong type: expected text"),
        ("data=x", "data=x has the wrong type: expected keys below it"),
        ("model.arguments=3", "model.arguments=3 has the wrong type: expected "),
    ],
)
def test_a_wrong_type_is_named_by_its_path(override: str, says: str) -> None:
    assert refusal(override).startswith(says)


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A nested part with a required value."""

    size: int
    rates: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Every kind of hint."""

    inner: Inner
    pair: tuple[int, str] = (0, "")
    numbers: list[int] = field(default_factory=list[int])
    either: int | float | str = 0
    maybe: tuple[float, ...] | None = None
    word: Literal["one", "two"] = "one"
    by_name: dict[str, float] = field(default_factory=dict[str, float])
    anything: Any = None
    ratio: float = 0.0
    label: str = ""


def made(**values: Any) -> Outer:
    return typed(Outer, {"inner": {"size": 1}, **values})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"inner": {"size": 2, "rates": [1, 0.5]}}, Inner(size=2, rates=(1.0, 0.5))),
        ({"pair": [3, "x"]}, (3, "x")),
        ({"numbers": (1, 2)}, [1, 2]),
        ({"either": 3}, 3),
        ({"either": 3.0}, 3.0),
        ({"either": "3"}, "3"),
        ({"maybe": None}, None),
        ({"maybe": [1]}, (1.0,)),
        ({"word": "two"}, "two"),
        ({"by_name": {"a": 1}}, {"a": 1.0}),
        ({"anything": [{"x": 1}]}, [{"x": 1}]),
        ({"ratio": 3}, 3.0),
        ({"label": 12}, "12"),
    ],
)
def test_every_kind_of_hint(values: dict[str, Any], expected: Any) -> None:
    (name,) = values
    found = getattr(made(**values), name)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"inner": {}}, "inner.size is missing: set inner.size=…"),
        ({"inner": {"size": "x"}}, "inner.size=x has the wrong type: expected a whole number"),
        ({"inner": {"size": 1, "rate": []}}, "unknown key inner.rate: did you mean rates?"),
        ({"inner": {"size": 1, "rates": [1, "x"]}}, "inner.rates[1]=x has the wrong type: expected a number"),
        ({"inner": 3}, "inner=3 has the wrong type: expected keys below it"),
        ({"pair": [1]}, "pair=[1] has the wrong length: expected 2 values"),
        ({"pair": ["a", "b"]}, "pair[0]=a has the wrong type"),
        ({"either": True}, "either=True has the wrong type: expected a whole number or a number or text"),
        ({"maybe": [None]}, "maybe[0]=None has the wrong type: expected a number"),
        ({"word": "on"}, "word=on: did you mean one?"),
        ({"by_name": {"a": "x"}}, "by_name.a=x has the wrong type: expected a number"),
        ({"label": True}, "label=True has the wrong type: expected text"),
    ],
)
def test_every_kind_of_mistake(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as refused:
        made(**values)
    assert str(refused.value).startswith(says)


def test_the_prefix_stands_before_every_path() -> None:
    with pytest.raises(UserError, match=r"^method\.size is missing"):
        typed(Inner, {}, "method.")


def leaves(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    return [
        name
        for key, value in values.items()
        for name in (leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [f"{prefix}{key}"])
    ]


def test_every_key_of_the_yaml_is_one_of_the_dataclass(root: Any) -> None:
    content = yaml.safe_load((root / "configs/pretrain.yaml").read_text())
    content.pop("defaults")
    config = typed(PretrainConfig, compose("pretrain", []))
    for name in leaves(content):
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part)
