"""From what Keras saves to a `QatModel`: names, configs and ranges turned into meaning."""
