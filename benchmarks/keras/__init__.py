"""`model.fit` with Keras' batch normalisation and with ours. Sets Keras' backend before keras is imported."""

import os

os.environ["KERAS_BACKEND"] = "torch"
