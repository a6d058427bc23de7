"""`adb://` against a false adb: it copies what is pushed and runs what is asked for in a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nas.errors import DeviceError, MissingPackageError, PreparationError, UsageError
from nas.families import load_space
from nas.runtimes import load_runtime
from nas.space.layer import Layer
from nas.tasks.classification import Classification

ADB = """#!/bin/sh
[ "$1" = -s ] && [ "$2" = PHONE1 ] || { echo "adb: device '$2' not found" >&2; exit 1; }
there() { echo "$1" | sed "s#/data/local/tmp#$PHONE#g"; }
case $3 in
push) cp "$4" "$(there "$5")" && echo "$4: 1 file pushed" ;;
shell) PATH="$PHONE/bin:$PATH" sh -c "$(there "$4")" ;;
esac
"""
GETPROP = """#!/bin/sh
case $1 in
ro.product.model) echo Phone One ;;
ro.soc.model) echo SM8550 ;;
ro.build.version.release) echo 15 ;;
*) echo "$EMULATED" ;;
esac
"""
# What the tool prints, for a median of a millisecond for each kilobyte of the model.
TOOL = """#!/bin/sh
for model; do :; done
echo "$@" >> "$PHONE/calls"
size=$(wc -c < "$model") || exit 1
echo "Setting intra_op_num_threads to 1"
echo "Average inference time cost total: 98.961997 ms"
echo "Min Latency: 0.0000529422 s"
awk "BEGIN { printf \\"P50 Latency: %g s\\\\n\\", $size / 1e6 }"
echo "P90 Latency: 9.1 s"
"""


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in (
        ("adb", ADB),
        ("getprop", GETPROP),
        ("uname", "#!/bin/sh\necho aarch64\n"),
        ("../onnxruntime_perf_test", TOOL),
    ):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "host").mkdir()
    (tmp_path / "bin/adb").rename(tmp_path / "host/adb")
    monkeypatch.setenv("PATH", f"{tmp_path / 'host'}:{os.environ['PATH']}")
    monkeypatch.setenv("PHONE", str(tmp_path))
    monkeypatch.setenv("EMULATED", "")
    return tmp_path


@pytest.fixture(scope="module")
def layers() -> tuple[Layer, ...]:
    space = load_space("vit:debug", Classification(4))
    return space.layers(space.smallest)[:2]


def test_layers_are_pushed_timed_and_removed(phone: Path, layers: tuple[Layer, ...]) -> None:
    from nas.lowering.onnx import lower

    runtime = load_runtime("adb://PHONE1")
    with runtime:
        found = runtime.describe()
        assert found["processor"] == "SM8550"
        assert found["kind"] == "arm"
        assert runtime.source == "measured"
        times = runtime.prepare(layers, False)()
        (whole,) = runtime.prepare(layers, True)()
        assert len(list(phone.glob("vitnas-*/*.onnx"))) == 3
    expected = [len(lower([x]).model) / 1e3 for x in layers]
    assert [x.wall for x in times] == pytest.approx(expected, rel=1e-4)
    assert whole.wall == pytest.approx(len(lower(layers).model) / 1e3, rel=1e-4)
    assert not list(phone.glob("vitnas-*"))
    assert "-e cpu -m times -r 10 -x 1 -y 1 -z -I" in (phone / "calls").read_text()


def test_the_emulator_is_never_called_measured(
    phone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMULATED", "1")
    runtime = load_runtime("adb://PHONE1")
    assert runtime.source == "emulated-time"
    assert runtime.describe()["emulator"] == "Android emulator"
    assert runtime.source == "emulated-time"


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ("error: device unauthorized.", "accept the question"),
        ("error: device offline", "plug it in again"),
        ("adb: no devices/emulators found", "USB debugging"),
        ("cp: No space left on device", "full disk"),
        ("\x1b[2J something else", "something else"),
    ],
)
def test_what_adb_says_becomes_one_line(phone: Path, said: str, word: str) -> None:
    (phone / "said").write_text(said)
    (phone / "host/adb").write_text(f"#!/bin/sh\ncat {phone}/said >&2\nexit 1\n")
    with pytest.raises(DeviceError, match=word) as caught:
        load_runtime("adb://PHONE1").describe()
    assert str(caught.value).isprintable()


def test_errors_name_the_fix(
    phone: Path, layers: tuple[Layer, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DeviceError, match="not connected"):
        load_runtime("adb://PHONE2").describe()
    with load_runtime("adb://PHONE1") as runtime:
        program = runtime.prepare(layers[:1], True)
        tool = phone / "onnxruntime_perf_test"
        for text, kind, word in (
            ("echo 'no kernel for Foo'; exit 1", PreparationError, "no kernel for Foo"),
            ("echo fine", PreparationError, "fine"),
            ("echo 'P50 Latency: 0 s'", DeviceError, "a time of 0 s"),
            ("echo 'P50 Latency: 1e9 s'", DeviceError, "a time of 1e9 s"),
        ):
            tool.write_text(f"#!/bin/sh\n{text}\n")
            with pytest.raises(kind, match=word):
                program()
    tool.unlink()
    with pytest.raises(DeviceError, match="has no /data/local/tmp/onnxruntime_perf_test"):
        load_runtime("adb://PHONE1").describe()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingPackageError, match="apt install adb"):
        load_runtime("adb://PHONE1").describe()


@pytest.mark.parametrize(
    "device", ["adb://", "adb://-s", "adb://a b", "adb://a;ls", "adb://a,tool=x"]
)
def test_addresses_that_are_none(device: str) -> None:
    with pytest.raises(UsageError):
        load_runtime(device)
