"""Simulated type I error and coverage of every test and interval that ships."""
