#!/usr/bin/env python3
"""torch_checkpoint.py OUT.pth: the checkpoints torch-*.pth here, saved by the version of torch in their names."""

import sys

import torch

linear = torch.nn.Linear(3, 2)
with torch.no_grad():
    linear.weight.copy_(torch.arange(6.0).reshape(2, 3))
    linear.bias.copy_(torch.tensor([10.0, 20.0]))
state = linear.state_dict()  # an OrderedDict with an attribute
base = torch.arange(6.0).reshape(2, 3)
state["transposed"] = base.t()
state["column"] = base[:, 1]
state["expanded"] = torch.tensor([[1.0], [2.0]]).expand(2, 3)
state["parameter"] = torch.nn.Parameter(torch.tensor([0.5, -2.0]).bfloat16())
state["half"] = torch.tensor([1.5, 65504.0]).half()
state["count"] = torch.tensor(1 << 40)
state["flags"] = torch.tensor([True, False, True])
optimizer = {"state": {0: {"exp_avg": torch.zeros(2)}}}
torch.save({"state_dict": state, "step": 3, "rate": 1e-3, "name": "a model", "optimizer": optimizer}, sys.argv[1])
