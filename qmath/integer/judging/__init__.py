"""Anyone's integers: what a file holds, what explains how they differ, and one of them closely."""
