"""The page of jobs with its two forms, the reports that jobs wrote, the admin."""

from django.conf import settings
from django.contrib import admin
from django.urls import path
from django.views.static import serve

from airports import reports, views

urlpatterns = [
    path("", views.home, name="home"),
    path("create/", views.create, name="create"),
    path("approve/<uuid:key>/", views.approve, name="approve"),
    # Django's own file view: for a demonstration, not for the open internet.
    path("reports/<path:path>", serve, {"document_root": reports.PUBLISHED}, name="report"),
    path("imports/<path:path>", serve, {"document_root": settings.VAR / "imports"}),
    path("admin/", admin.site.urls),
]
