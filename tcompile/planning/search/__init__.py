"""Schedules that are chosen by running them on images."""
