from model_hub import *
