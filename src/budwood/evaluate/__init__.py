"""How good a model is: losses, classes, texts and times."""

from budwood.evaluate.classify import Classification as Classification
from budwood.evaluate.classify import classify as classify
from budwood.evaluate.cloze import answer as answer
from budwood.evaluate.fill import fill as fill
from budwood.evaluate.fill import gaps as gaps
from budwood.evaluate.fill import hidden as hidden
from budwood.evaluate.fill import shown as shown
from budwood.evaluate.fill import typed as typed
from budwood.evaluate.generate import Generation as Generation
from budwood.evaluate.generate import complete as complete
from budwood.evaluate.generate import generate as generate
from budwood.evaluate.latency import latency as latency
from budwood.evaluate.loss import LossReport as LossReport
from budwood.evaluate.loss import evaluate_loss as evaluate_loss
from budwood.evaluate.mode import evaluating as evaluating
from budwood.evaluate.sampling import Sampling as Sampling
from budwood.evaluate.task import METRICS as METRICS
from budwood.evaluate.task import EvaluationResult as EvaluationResult
from budwood.evaluate.task import Options as Options
from budwood.evaluate.task import Prediction as Prediction
from budwood.evaluate.task import Task as Task
from budwood.evaluate.task import evaluate as evaluate
