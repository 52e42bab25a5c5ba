"""Files exported from PyTorch teach what the module they came from computes."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from edgert.errors import ArtifactError, ConfigError, EdgertError
from edgert.ports import models, torchfile

H, W, C, A = 4, 3, 2, 5
OBS = np.random.default_rng(1).integers(0, 256, (7, H, W, C), np.uint8)


class Net(torch.nn.Module):
    def __init__(self, both: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Conv2d(C, 6, 2)
        self.policy, self.value = torch.nn.Linear(6 * (H - 1) * (W - 1), A), torch.nn.Linear(6 * (H - 1) * (W - 1), 1)
        self.both = both

    def forward(self, obs):
        seen = torch.relu(self.body(obs)).flatten(1)
        return (self.policy(seen), self.value(seen)) if self.both else self.policy(seen)


def exported(net, batch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = {"obs": {0: torch.export.Dim("n", min=1)}} if batch is None else None
        program = torch.export.export(net.eval(), (torch.zeros(batch or 2, C, H, W),), dynamic_shapes=shapes)
        file = io.BytesIO()
        torch.export.save(program, file)
    return file.getvalue()


def scripted(net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = io.BytesIO()
        torch.jit.save(torch.jit.trace(net.eval(), torch.zeros(2, C, H, W)), file)
    return file.getvalue()


def truth(net):
    with torch.no_grad():
        given = net(torch.from_numpy(OBS).permute(0, 3, 1, 2).float() / 255)
    return torch.cat(given, 1).numpy() if net.both else given.numpy()


def taught(tmp_path, name, data, query):
    (tmp_path / name).write_bytes(data)
    return models.open_subject(models.parse_source(f"game={tmp_path / name}?{query}"))


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("batch", [None, 3])
def test_torch_export(tmp_path, both, batch):
    net = Net(both)
    subject = taught(tmp_path, "net.pt2", exported(net, batch), "layout=nchw&scale=1/255")
    assert (subject.obs_shape, subject.n_actions, subject.kind) == ((H, W, C), A, "policy" if both else "q")
    np.testing.assert_allclose(subject.model(OBS), truth(net), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("both", [False, True])
def test_torchscript(tmp_path, both):
    net = Net(both)
    subject = taught(tmp_path, "net.pt", scripted(net), f"layout=nchw&scale=1/255&obs_shape={H},{W},{C}")
    np.testing.assert_allclose(subject.model(OBS), truth(net), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="obs_shape"):
        taught(tmp_path, "net.pt", scripted(net), "layout=nchw&scale=1/255")
    with pytest.raises(ArtifactError, match="cannot run"):
        taught(tmp_path, "net.pt", scripted(net), "layout=nchw&scale=1/255&obs_shape=4,3,9")


def test_outputs_are_chosen_by_position(tmp_path):
    net = Net(True)
    subject = taught(tmp_path, "net.pt2", exported(net, None), "layout=nchw&scale=1/255&outputs=0")
    assert subject.kind == "q"
    np.testing.assert_allclose(subject.model(OBS), truth(net)[:, :A], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["net.pt2", "net.pt"])
def test_a_torn_or_foreign_file_is_a_named_error(tmp_path, name):
    whole = exported(Net(False), None) if name == "net.pt2" else scripted(Net(False))
    for data in (b"", b"not a model", whole[: len(whole) // 2]):
        with pytest.raises(EdgertError, match="does not take it"):
            taught(tmp_path, name, data, f"layout=nchw&scale=1&obs_shape={H},{W},{C}")


def test_more_than_one_input_is_refused():
    class Two(torch.nn.Module):
        def forward(self, a, b):
            return a + b

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = io.BytesIO()
        torch.export.save(torch.export.export(Two(), (torch.zeros(2, 3), torch.zeros(2, 3))), file)
    with pytest.raises(ArtifactError, match="2 inputs"):
        torchfile.open_graph(file.getvalue(), exported=True)


def test_pytorch_is_imported_by_nobody_who_does_not_need_it():
    code = "import sys, edgert.programs.teacher; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
