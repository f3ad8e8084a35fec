"""Options of several commands: how a model is loaded, and how its pipeline is called."""

from __future__ import annotations

from typing import Annotated

import typer

HeightOption = Annotated[int | None, typer.Option(help="In pixels; the model's own unless said.")]
WidthOption = Annotated[int | None, typer.Option(help="In pixels; the model's own unless said.")]
GuidanceOption = Annotated[float | None, typer.Option(help="The model's own unless said.")]
TrueCfgOption = Annotated[
    float | None, typer.Option(help="Classifier-free guidance, for models that have it apart.")
]
NegativePromptOption = Annotated[str | None, typer.Option(help="What not to draw.")]
DtypeOption = Annotated[str | None, typer.Option(help="float32, bfloat16, ...; fits the device unless said.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, ...; a GPU if there is one unless said.")]
