"""Typed settings. A preset or a config file is TOML with these tables; unknown keys are refused.

Order of precedence, strongest first: flag, ``CTXEDIT_<TABLE>_<KEY>`` variable, ``--config`` file, preset,
default. A ``[builtin]`` table overlays a preset when the built-in models are used: published settings are for
Stable Diffusion, the small models need other lengths and rates.

    settings    the settings themselves
    ranges      annotations of settings
    merging     a nested table of values into settings
    checks      ranges, and settings that exclude each other
    loading     presets, files, variables and flags
"""

from ctxedit.config.checks import validated as validated
from ctxedit.config.loading import absolute as absolute
from ctxedit.config.loading import environment as environment
from ctxedit.config.loading import lean as lean
from ctxedit.config.loading import load as load
from ctxedit.config.merging import convert as convert
from ctxedit.config.merging import merge as merge
from ctxedit.config.ranges import Length as Length
from ctxedit.config.ranges import Range as Range
from ctxedit.config.settings import SOURCE as SOURCE
from ctxedit.config.settings import AdapterConfig as AdapterConfig
from ctxedit.config.settings import AttentionConfig as AttentionConfig
from ctxedit.config.settings import ClipConfig as ClipConfig
from ctxedit.config.settings import Config as Config
from ctxedit.config.settings import ControlConfig as ControlConfig
from ctxedit.config.settings import EditConfig as EditConfig
from ctxedit.config.settings import FusionConfig as FusionConfig
from ctxedit.config.settings import InvertConfig as InvertConfig
from ctxedit.config.settings import Solver as Solver
from ctxedit.config.settings import TuneConfig as TuneConfig
from ctxedit.config.settings import UpscaleConfig as UpscaleConfig
from ctxedit.config.settings import WindowConfig as WindowConfig
from ctxedit.config.settings import setting_names as setting_names
from ctxedit.config.settings import to_table as to_table
from ctxedit.model_names import BUILTIN as BUILTIN
from ctxedit.tables import PRESET_FOLDERS as PRESET_FOLDERS
from ctxedit.tables import preset_names as preset_names
from ctxedit.tables import preset_path as preset_path
