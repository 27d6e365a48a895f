"""One page: what jobs there are, what became of them, and buttons that create more and approve."""

from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST

from django_dbq.models import Job

from . import reports
from .models import JournalEntry

DONE = [Job.STATES.COMPLETE, Job.STATES.FAILED, Job.STATES.CANCELLED]
APPROVAL = "wait_for approval"  # the step at which a person is asked


def home(request: HttpRequest) -> HttpResponse:
    """The latest jobs with their steps, the latest lines of the journal, the reports. Members stay out of sight."""
    jobs = Job.objects.filter(parent=None).order_by("-created").prefetch_related("attempts")[:25]
    return render(
        request,
        "airports/home.html",
        {
            "jobs": jobs,
            "journal": JournalEntry.objects.all()[:25],
            "approval": APPROVAL,
            "published": (reports.PUBLISHED / "airports.html").exists(),
            "busy": any(job.state not in DONE and job.next_task != APPROVAL for job in jobs),
        },
    )


@require_POST
def create(request: HttpRequest) -> HttpResponse:
    """Create the job that a button asks for; a worker does it, and this answers at once."""
    if country := request.POST.get("country", "").strip().upper():
        Job.objects.create(name="country_report", workspace={"country": country})
    else:
        Job.objects.create(name="import_airports")
    return redirect("home")


@require_POST
def approve(request: HttpRequest, key: UUID) -> HttpResponse:
    """Send a job the event that it waits for, as `manage.py jobs send` does."""
    get_object_or_404(Job, pk=key).send("approval", {"by": "a visitor of the site"})
    return redirect("home")
