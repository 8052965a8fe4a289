"""An independent check of an export: it shares no arithmetic with what it checks."""
