"""How a sample becomes views: operators on images, the distributions of their parameters, and the papers' recipes.

Compiled loops and OpenCV on the CPU. All of it is a pure function of pixels and keys; OpenCV's own threads
(`cv2.setNumThreads`) change no result, but a loader with threads of its own is faster without them.
"""

from ssl_core.views.recipes import RECIPES, CropConfig, CropRecipe, ViewGroup, recipe
from ssl_core.views.view import ViewConfig, ViewParameters, draw, render

__all__ = [
    "RECIPES",
    "CropConfig",
    "CropRecipe",
    "ViewConfig",
    "ViewGroup",
    "ViewParameters",
    "draw",
    "recipe",
    "render",
]
