"""Cases by pipe: what `qmath vectors` writes, a kernel answers, and `qmath diff --op` judges."""
