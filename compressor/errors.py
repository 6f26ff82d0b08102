"""What can go wrong with a job.

JobError               base; the text is one line for the user
├── RecipeError        the user's input: recipe, data, model file. Exit status 2.
├── PassError          a pass failed or broke its contract. Exit status 1.
├── Refused            the technique is known not to pay, or not to be right, here. Exit status 3.
└── OverBudget         the result breaks the budget; nothing was published. Exit status 4.
"""

from __future__ import annotations


class JobError(Exception):
    exit_status = 1


class RecipeError(JobError):
    exit_status = 2


class PassError(JobError):
    exit_status = 1


class Refused(JobError):
    exit_status = 3


class OverBudget(JobError):
    exit_status = 4
