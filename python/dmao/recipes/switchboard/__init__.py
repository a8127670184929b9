"""Switchboard-1: telephone conversations at 8 kHz, 300 hours, with Hub5'00, Hub5'01 and RT03S for evaluation."""
