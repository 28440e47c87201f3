"""What is the matter with this machine and this repository, and what can they run?"""
