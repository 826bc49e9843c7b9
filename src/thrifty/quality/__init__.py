"""Canary questions: questions with known answers, asked of every live version on a schedule."""
