"""`model.fit` with Keras' batch normalisation and with ours; Keras' backend is set before it is imported."""

import os

os.environ["KERAS_BACKEND"] = "torch"
