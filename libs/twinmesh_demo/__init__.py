"""The demo: a plant outside the mesh, this machine, dirt, a crash, models, a decision, and a report.

It owns nothing and promises one thing: everything in it goes through the public API, as a user's code would, and every
figure it prints was measured in that run.
"""
