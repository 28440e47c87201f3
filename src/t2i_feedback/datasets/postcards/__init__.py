"""The drawn data set: scenes, drawings and captions."""
