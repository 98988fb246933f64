"""The model behind the page of the admin. It has no table: the jobs are on the server of jsq."""

from django.db import models


class Jobs(models.Model):
    """The jobs of jsq, for the admin: the permissions to see and to change them."""

    id = models.CharField(primary_key=True, max_length=128)

    class Meta:
        managed = False
        default_permissions = ()
        permissions = (("view_jobs", "Can view jobs"), ("manage_jobs", "Can retry and cancel jobs"))
        verbose_name = "job"
        verbose_name_plural = "jobs"

    def __str__(self) -> str:
        return str(self.id)
