"""Alerts: rules are evaluated, alerts remembered, notifications put into words and delivered.

inputs → evaluator, threshold_rules → alert (the life of one alert) → manager → notification → delivery → channels
"""
