"""A page in which the browser draws a scene's Gaussians and a person asks them."""
