from jsq.contrib.django.backend import JsqBackend as JsqBackend
from jsq.contrib.django.backend import JsqTask as JsqTask
from jsq.contrib.django.commit import OnCommit as OnCommit
from jsq.contrib.django.commit import on_commit as on_commit
from jsq.contrib.django.connections import DatabaseConnections as DatabaseConnections
from jsq.contrib.django.project import DjangoApp as DjangoApp
from jsq.contrib.django.runner import JsqTestRunner as JsqTestRunner
from jsq.contrib.django.status import job_urls as job_urls

app: DjangoApp
NAME_MODULES: dict[str, str]
