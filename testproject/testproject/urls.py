"""Three addresses: the page of jobs, the reports that jobs wrote, the admin."""

from django.conf import settings
from django.contrib import admin
from django.urls import path
from django.views.static import serve

from airports import views

urlpatterns = [
    path("", views.home, name="home"),
    path("create/", views.create, name="create"),
    # Django's own file view: for a demonstration, not for the open internet.
    path("reports/<path:path>", serve, {"document_root": settings.VAR / "reports"}, name="report"),
    path("admin/", admin.site.urls),
]
