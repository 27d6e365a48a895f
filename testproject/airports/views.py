"""One page: what jobs there are, what became of them, and buttons that create more."""

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST

from django_dbq.models import Job

from .models import JournalEntry

UNFINISHED = [Job.STATES.NEW, Job.STATES.READY, Job.STATES.PROCESSING, Job.STATES.STOPPING]


def home(request: HttpRequest) -> HttpResponse:
    """The latest jobs with their steps, the latest lines of the journal, the reports."""
    jobs = Job.objects.order_by("-created").prefetch_related("attempts")[:25]
    reports = sorted((settings.VAR / "reports").glob("*.html"))
    return render(
        request,
        "airports/home.html",
        {
            "jobs": jobs,
            "journal": JournalEntry.objects.all()[:25],
            "reports": [report.name for report in reports],
            "busy": any(job.state in UNFINISHED for job in jobs),
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
