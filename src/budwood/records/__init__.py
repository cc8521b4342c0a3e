"""What happened, as plain data on disk; nothing here imports torch."""

from budwood.records.files import Json as Json
from budwood.records.machine import Accelerator as Accelerator
from budwood.records.machine import Machine as Machine
from budwood.records.machine import machine as machine
from budwood.records.manifest import Manifest as Manifest
from budwood.records.meter import MemoryMeter as MemoryMeter
from budwood.records.meter import Meter as Meter
from budwood.records.meter import count as count
from budwood.records.meter import cuda_memory as cuda_memory
from budwood.records.rates import RateProbe as RateProbe
from budwood.records.rates import RateTrial as RateTrial
from budwood.records.result import Inference as Inference
from budwood.records.result import Memory as Memory
from budwood.records.result import Parameters as Parameters
from budwood.records.result import Quality as Quality
from budwood.records.result import Result as Result
from budwood.records.result import Score as Score
from budwood.records.result import Speed as Speed
from budwood.records.result import Timing as Timing
from budwood.records.run import Listing as Listing
from budwood.records.run import RunFolder as RunFolder
from budwood.records.run import list_runs as list_runs
