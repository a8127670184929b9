"""Recorded speech from Debian packages: Dutch and Czech, about 90 minutes each (`dmao prepare recorded-nl`, `-cs`)."""
