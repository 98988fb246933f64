from jsq.testing.clock import JsqClock as JsqClock
from jsq.testing.servers import JsqServer as JsqServer
from jsq.testing.submits import Submits as Submits
from jsq.testing.submits import SubmittedJob as SubmittedJob
from jsq.testing.worker import Drain as Drain
from jsq.testing.worker import JsqWorker as JsqWorker
from jsq.testing.worker import WorkerDied as WorkerDied
