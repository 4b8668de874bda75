"""Sweeps: which points are tried, how Ray Tune runs them as pretrainings of their own, and what came out."""
